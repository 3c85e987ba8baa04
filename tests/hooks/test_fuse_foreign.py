"""FuseBackboneHook on the backbones of other libraries, inside a stock detector and alone."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import Any, ClassVar

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from repnext_mm import FuseBackboneHook
from repnext_mm.reparam import relative_error
from repnext_mm.reparam.fuse import count_norms
from tests.conftest import randomize

pytest.importorskip('mmcv.ops')
pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain.models')

REPVGG = {'type': 'mmpretrain.RepVGG', 'arch': 'A0', 'out_indices': (0, 1, 2, 3)}
REPVIT = {'type': 'mmpretrain.TIMMBackbone', 'model_name': 'repvit_m0_9', 'features_only': True, 'pretrained': False}
BACKBONES = {
    'RepVGG': (REPVGG, [48, 96, 192, 1280], 61),
    'RepViT of timm': (REPVIT, [48, 96, 192, 384], 106),
}


def build(config: dict[str, Any]) -> nn.Module:
    init_default_scope('mmdet')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # timm's own
        return randomize(MODELS.build(ConfigDict(config)))


def retinanet(backbone: dict[str, Any], channels: list[int]) -> nn.Module:
    return build(
        {
            'type': 'RetinaNet',
            'data_preprocessor': {'type': 'DetDataPreprocessor', 'pad_size_divisor': 32},
            'backbone': backbone,
            'neck': {'type': 'FPN', 'in_channels': channels, 'out_channels': 16, 'num_outs': 5},
            'bbox_head': {
                'type': 'RetinaHead',
                'num_classes': 3,
                'in_channels': 16,
                'stacked_convs': 1,
                'feat_channels': 16,
                'anchor_generator': {
                    'type': 'AnchorGenerator',
                    'octave_base_scale': 4,
                    'scales_per_octave': 1,
                    'ratios': [1.0],
                    'strides': [4, 8, 16, 32, 64],
                },
                'bbox_coder': {'type': 'DeltaXYWHBBoxCoder'},
            },
            'test_cfg': {
                'nms_pre': 50,
                'score_thr': 0.0,
                'nms': {'type': 'nms', 'iou_threshold': 0.5},
                'max_per_img': 20,
            },
        }
    )


class Scenes(Dataset):
    """Images of noise, as mmdet's pipelines pack them."""

    metainfo: ClassVar[dict] = {}

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        from mmdet.structures import DetDataSample

        image = torch.randn(3, 64, 96, generator=torch.Generator().manual_seed(index))
        meta = {'img_shape': (64, 96), 'ori_shape': (64, 96), 'scale_factor': (1.0, 1.0), 'img_id': index}
        return {'inputs': image, 'data_samples': DetDataSample(metainfo=meta)}


class Predictions(BaseMetric):
    """Keeps the boxes and scores, and how many norms the tested backbone had."""

    def process(self, data_batch, data_samples):
        self.results += [
            (sample['pred_instances']['bboxes'], sample['pred_instances']['scores']) for sample in data_samples
        ]

    def compute_metrics(self, results):
        return {'boxes': torch.cat([boxes for boxes, _ in results]), 'scores': torch.cat([s for _, s in results])}


def outcome(model: nn.Module, hooks: list, folder: str, name: str) -> dict[str, torch.Tensor]:
    loader = {
        'dataset': Scenes(),
        'batch_size': 1,
        'num_workers': 0,
        'persistent_workers': False,
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
    }
    runner = Runner(
        model,
        work_dir=folder,
        test_dataloader=loader,
        test_cfg={},
        test_evaluator=[Predictions()],
        custom_hooks=hooks,
        experiment_name=name,
        default_hooks={'checkpoint': None, 'logger': None},
        log_level='WARNING',
    )
    seen = []
    handle = nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: seen.append(count_norms(module)) if type(module) is type(model.backbone) else None
    )
    try:
        metrics = runner.test()
    finally:
        handle.remove()
    assert runner.model is model
    return {**metrics, 'norms': seen[-1]}


@pytest.mark.parametrize('name', BACKBONES)
def test_a_stock_detector(tmp_path, name):
    backbone, channels, norms = BACKBONES[name]
    model = retinanet(backbone, channels)
    model.train()
    plain = outcome(model, [], str(tmp_path), f'{name} plain')
    model.train()
    state, flags = copy.deepcopy(model.state_dict()), [(m.training, type(m)) for m in model.modules()]
    fused = outcome(model, [FuseBackboneHook()], str(tmp_path), f'{name} fused')
    assert (plain['norms'], fused['norms']) == (norms, 0)
    assert len(plain['boxes']) == 40
    torch.testing.assert_close(fused['scores'], plain['scores'], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused['boxes'], plain['boxes'], rtol=1e-3, atol=1e-2)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert flags == [(m.training, type(m)) for m in model.modules()]


class Holder(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone


@pytest.fixture
def log(caplog):
    logger = MMLogger.get_instance('foreign-hook-test')
    logger.addHandler(caplog.handler)
    yield caplog
    MMLogger._instance_dict.clear()


SE_ARCH = {
    'num_blocks': [1, 1, 1, 1],
    'width_factor': [0.25] * 4,
    'group_layer_map': None,
    'se_cfg': {'ratio': 16, 'divisor': 1},
}
PERCEPTRONS = {'channels': [16, 32, 64, 128], 'depths': [1, 1, 1, 1], 'sharesets_nums': [1, 2, 4, 8]}


def test_a_conversion_that_its_library_gets_wrong_is_left_out(log):
    model = Holder(build({'type': 'mmpretrain.RepVGG', 'arch': SE_ARCH, 'out_indices': (3,)}))
    fused, report = FuseBackboneHook().fuse_backbone(model)
    assert 'leaves 6 modules as they are: RepVGG.switch_to_deploy(): it changes the output by' in log.text
    assert report.norms_after == 0  # plain pairs remain, and the branches beside each other
    assert report.modules[:2] == ('stem.branch_3x3.conv', 'stem.branch_1x1.conv')
    model.backbone.eval()
    assert max(relative_error(fused.backbone, model.backbone, torch.randn(1, 3, 64, 64))) < 1e-4


def test_a_backbone_that_takes_one_size_only():
    model = Holder(build({'type': 'mmpretrain.RepMLPNet', 'arch': PERCEPTRONS, 'img_size': 64}))
    _, report = FuseBackboneHook().fuse_backbone(model)
    assert report.norms_after < report.norms_before


def test_a_backbone_that_takes_the_usual_size_only():
    model = Holder(build({'type': 'mmpretrain.LeViT', 'arch': '128s'}))
    _, report = FuseBackboneHook().fuse_backbone(model)
    assert report.norms_after == 0


@pytest.mark.parametrize(
    'layers',
    [
        [nn.Linear(3, 3)],
        [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(7, 7)],
    ],
    ids=['no convolution', 'another size'],
)
def test_what_cannot_be_verified_is_not_fused(log, layers):
    model = Holder(nn.Sequential(*layers)).train()
    fused, report = FuseBackboneHook().fuse_backbone(model)
    assert fused is model
    assert not report
    assert 'takes no image to verify it with, nothing is fused' in log.text
    assert model.backbone.training


def test_auto_has_nothing_to_choose_from():
    model = Holder(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    _, report = FuseBackboneHook(form='auto').fuse_backbone(model)
    assert report.form == 'default'
    assert report.norms_after == 0


def test_images_of_other_channels_and_groups(log):
    log.set_level(logging.INFO)
    model = Holder(nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), nn.ReLU()))
    _, report = FuseBackboneHook().fuse_backbone(model)
    assert report.norms_after == 0
    assert 'Sequential: fused 1 modules' in log.text
