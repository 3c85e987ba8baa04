"""RepNeXt in frameworks that this package has never heard of: each finds it in mmengine's root registry."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, METRICS, MODELS, Registry, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.utils.data import Dataset

from repnext_mm import FuseBackboneHook, RepNeXt
from repnext_mm.reparam.fuse import count_norms

TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}
BACKBONE = dict(type='RepNeXt', arch=TINY)


class Images(Dataset):
    """Noise of a known brightness."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index >= len(self):
            raise IndexError(index)  # ends an iteration
        noise = torch.randn(3, 40, 56, generator=torch.Generator().manual_seed(index))
        return {'inputs': noise + index, 'brightness': torch.tensor(float(index))}


class BrightnessModel(BaseModel):
    """A model of somebody's own; it knows that its backbone is in the registry, and no more."""

    def __init__(self, backbone: dict) -> None:
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.head = nn.Linear(self.backbone.out_channels[-1], 1)
        self.norms: list[int] = []  # of the backbone, at each prediction

    def forward(self, inputs, brightness, mode='tensor'):
        said = self.head(self.backbone(torch.stack(tuple(inputs)))[-1].mean((2, 3))).squeeze(1)
        if mode == 'loss':
            return {'loss': (said - torch.stack(tuple(brightness))).pow(2).mean()}
        self.norms.append(count_norms(self.backbone))
        return [{'said': value} for value in said]


class Said(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [sample['said'].item() for sample in data_samples]

    def compute_metrics(self, results):
        return {f'image {index}': value for index, value in enumerate(results)}


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry, kind in ((MODELS, BrightnessModel), (DATASETS, Images), (METRICS, Said)):
        monkeypatch.setitem(registry._module_dict, kind.__name__, kind)


def loader(*, shuffle: bool) -> dict:
    sampler = dict(type='DefaultSampler', shuffle=shuffle)
    return dict(dataset=dict(type='Images'), batch_size=2, num_workers=0, sampler=sampler)


@pytest.mark.usefixtures('registered')
def test_a_bare_mmengine_model_is_trained_and_tested_fused(tmp_path):
    config = Config(
        dict(
            custom_imports=dict(imports=['repnext_mm'], allow_failed_imports=False),
            model=dict(type='BrightnessModel', backbone=BACKBONE),
            train_dataloader=loader(shuffle=True),
            test_dataloader=loader(shuffle=False),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=2),
            test_cfg={},
            test_evaluator=dict(type='Said'),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
            custom_hooks=[dict(type='FuseBackboneHook', tolerance=1e-5)],
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2)),
            work_dir=str(tmp_path),
            experiment_name='bare',
        )
    )
    runner = Runner.from_cfg(config)
    model = runner.model
    assert isinstance(model.backbone, RepNeXt)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    runner.train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in before if name.endswith('weight')} <= changed
    found = runner.test()
    assert model.norms == [0, 0]  # the list is shared with the fused model
    assert runner.model is model
    assert count_norms(model.backbone) > 0
    model.eval()
    with torch.no_grad():
        said = [model(**pseudo_collate([image]), mode='predict')[0]['said'].item() for image in Images()]
    assert list(found.values()) == pytest.approx(said, rel=1e-4, abs=1e-5)
    assert (tmp_path / 'iter_2.pth').is_file()


@pytest.fixture
def framework() -> Iterator[Registry]:
    """The model registry of a framework that is not written yet."""
    yield Registry('model', parent=MODELS, scope='mmfuture')
    MODELS.children.pop('mmfuture')


def test_any_frameworks_registry_finds_it_without_a_prefix(framework):
    init_default_scope('mmfuture')
    assert isinstance(framework.build(dict(BACKBONE)), RepNeXt)
    assert isinstance(MODELS.build(dict(BACKBONE)), RepNeXt)
    with pytest.raises(KeyError, match='RepNext is not in the'):
        framework.build(dict(BACKBONE, type='RepNext'))


def trained_one_step(model: BaseModel, data: dict) -> dict[str, Tensor]:
    """Losses of one step, after which every weight of the backbone has moved."""
    before = {name: value.detach().clone() for name, value in model.backbone.named_parameters()}
    losses = model.train().train_step(data, OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3)))
    assert all(torch.isfinite(value).all() for value in losses.values())
    weights = {name: value for name, value in model.backbone.named_parameters() if name.endswith('weight')}
    assert [name for name, value in weights.items() if torch.equal(value, before[name])] == []
    return losses


def fused(model: BaseModel) -> BaseModel:
    result, report = FuseBackboneHook(tolerance=1e-4).fuse_backbone(model.eval())
    assert report.norms_before > report.norms_after == 0
    return result


@pytest.mark.filterwarnings('ignore')
def test_mmpose_estimates_poses_with_it():
    pytest.importorskip('mmpose.models', reason='mmpose is not installed')
    from mmpose.registry import MODELS as POSE_MODELS
    from mmpose.testing import get_packed_inputs

    init_default_scope('mmpose')
    codec = dict(type='MSRAHeatmap', input_size=(64, 96), heatmap_size=(16, 24), sigma=2)
    model = POSE_MODELS.build(
        dict(
            type='TopdownPoseEstimator',
            data_preprocessor=dict(type='PoseDataPreprocessor', mean=[0.0] * 3, std=[255.0] * 3, bgr_to_rgb=True),
            backbone=dict(BACKBONE, out_indices=(3,)),
            head=dict(
                type='HeatmapHead',
                in_channels=64,
                out_channels=17,
                deconv_out_channels=(16, 16, 16),
                deconv_kernel_sizes=(4, 4, 4),
                loss=dict(type='KeypointMSELoss', use_target_weight=True),
                decoder=codec,
            ),
            test_cfg=dict(flip_test=False),
        )
    )
    data = get_packed_inputs(
        2,
        num_instances=1,
        num_keypoints=17,
        img_shape=(96, 64),
        input_size=(64, 96),
        heatmap_size=(16, 24),
        with_heatmap=True,
    )
    assert isinstance(model.backbone, RepNeXt)
    assert trained_one_step(model, data)['loss_kpt'] > 0
    with torch.no_grad():
        one, other = model.eval().test_step(data), fused(model).test_step(data)
    for sample, expected in zip(other, one, strict=True):
        assert sample.pred_instances.keypoints.shape == (1, 17, 2)
        assert sample.pred_instances.keypoint_scores == pytest.approx(
            expected.pred_instances.keypoint_scores, rel=1e-3, abs=1e-5
        )


@pytest.mark.filterwarnings('ignore')
def test_mmrotate_detects_rotated_boxes_with_it(tmp_path):
    pytest.importorskip('mmrotate.models', reason='mmrotate is not installed')
    from mmdet.structures import DetDataSample
    from mmrotate.structures.bbox import RotatedBoxes

    configs = Path(find_spec('mmrotate').origin).parent / '.mim/configs'
    stock = configs / 'rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py'  # trains on a CPU too
    path = tmp_path / 'my_config.py'
    path.write_text(f"""
_base_ = '{stock.as_posix()}'
custom_imports = dict(imports=['repnext_mm'], allow_failed_imports=False)
model = dict(
    backbone=dict(_delete_=True, type='RepNeXt', arch={TINY}),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32),
    test_cfg=dict(nms_pre=40, score_thr=0.0))
""")
    config = Config.fromfile(path)
    init_default_scope(config.default_scope)
    model = MODELS.build(config.model)
    assert isinstance(model.backbone, RepNeXt)
    samples = []
    for angle in (0.3, -0.8):
        meta = dict(img_shape=(128, 160), ori_shape=(128, 160), scale_factor=(1.0, 1.0))
        boxes = RotatedBoxes(torch.tensor([[60.0, 50.0, 50.0, 20.0, angle], [100.0, 80.0, 30.0, 40.0, -angle]]))
        truth = InstanceData(bboxes=boxes, labels=torch.tensor([2, 7]))
        samples.append(DetDataSample(metainfo=meta, gt_instances=truth))
    data = {'inputs': [torch.randint(256, (3, 128, 160), dtype=torch.uint8) for _ in samples], 'data_samples': samples}
    assert trained_one_step(model, data)['loss_bbox'] > 0
    with torch.no_grad():
        one, other = model.eval().test_step(data), fused(model).test_step(data)
    for sample, expected in zip(other, one, strict=True):
        found, wanted = sample.pred_instances, expected.pred_instances
        assert found.bboxes.shape == (len(found), 5)
        assert len(found) >= 5
        assert found.scores[:5].tolist() == pytest.approx(wanted.scores[:5].tolist(), rel=1e-3)
