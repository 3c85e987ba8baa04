"""RepNeXt in stock model configs of mmdet, mmseg and mmpretrain, by the lines that README shows."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from torch import nn

from repnext_mm import FuseBackboneHook
from repnext_mm.reparam.fuse import count_norms

pytest.importorskip('mmcv.ops')

README = (Path(__file__).parents[1] / 'README.md').read_text()


def readme_lines(package: str) -> str:
    """The block of code that README shows for a package."""
    found = re.search(rf'^{package}[^\n]*:\n```python\n(.*?)```', README, re.MULTILINE | re.DOTALL)
    assert found, f'README shows no lines for {package}'
    return found[1]


def user_config(folder: Path, package: str, base: str, lines: str) -> Config:
    """A user's own config file over a stock one, which lies where the package installs it."""
    root = Path(importlib.util.find_spec(package).origin).parent
    path = folder / 'my_config.py'
    path.write_text(f"_base_ = '{(root / '.mim/configs/_base_/models' / base).as_posix()}'\n{lines}")
    config = Config.fromfile(str(path))
    init_default_scope(package)
    return config


def detection_sample(size: int):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    masks = torch.zeros(2, size, size, dtype=torch.uint8)
    boxes = torch.tensor([[4.0, 4.0, 40.0, 40.0], [30.0, 20.0, 60.0, 62.0]])
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    truth = InstanceData(bboxes=boxes, labels=torch.tensor([1, 5]), masks=BitmapMasks(masks.numpy(), size, size))
    return DetDataSample(
        metainfo={
            'img_shape': (size, size),
            'ori_shape': (size, size),
            'scale_factor': (1.0, 1.0),
            'batch_input_shape': (size, size),
            'pad_shape': (size, size),
        },
        gt_instances=truth,
    )


def segmentation_sample(size: int):
    from mmseg.structures import SegDataSample

    meta = {'img_shape': (size, size), 'ori_shape': (size, size)}
    return SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=torch.randint(0, 19, (1, size, size))))


def classification_sample(size: int):
    from mmpretrain.structures import DataSample

    return DataSample().set_gt_label(3)


@pytest.mark.parametrize(
    ('package', 'name', 'base', 'sample'),
    [
        ('mmdet', 'MMDetection', 'mask-rcnn_r50_fpn.py', detection_sample),
        ('mmseg', 'MMSegmentation', 'fpn_r50.py', segmentation_sample),
        ('mmpretrain', 'MMPretrain', 'resnet50.py', classification_sample),
    ],
    ids=['mmdet', 'mmseg', 'mmpretrain'],
)
def test_three_lines_of_a_users_config(tmp_path, package, name, base, sample):
    pytest.importorskip(package)
    size = 64
    config = user_config(tmp_path, package, base, readme_lines(name))
    if package == 'mmseg':
        config.model.backbone.norm_cfg = {'type': 'BN'}
        config.model.decode_head.norm_cfg = {'type': 'BN'}  # the stock config's SyncBN needs a GPU
    model = MODELS.build(config.model)
    model.init_weights()
    samples = [sample(size) for _ in range(2)]
    images = torch.randn(2, 3, size, size)
    losses = model.train()(images, samples, mode='loss')
    total, logged = model.parse_losses(losses)
    assert torch.isfinite(total)
    assert total > 0
    assert logged['loss'] == total
    total.backward()
    missing = [name for name, p in model.backbone.named_parameters() if p.grad is None or not p.grad.any()]
    # the bias of a convolution before a norm has no gradient in exact arithmetic, but a tensor all the same
    assert all(p.grad is not None for p in model.backbone.parameters())
    assert not [name for name in missing if name.endswith('weight')]
    fused, report = FuseBackboneHook().fuse_backbone(model)
    assert report.norms_after == count_norms(fused.backbone) == 0
    with torch.no_grad():
        assert len(fused.eval()(images, samples, mode='predict')) == 2


def test_stock_mmseg_pretrained_is_refused_with_the_way_out(tmp_path):
    pytest.importorskip('mmseg')
    lines = readme_lines('MMSegmentation').replace('    pretrained=None,\n', '')
    config = user_config(tmp_path, 'mmseg', 'fpn_r50.py', lines)
    with pytest.raises(ValueError, match=r'pretrained=None in the model'):
        MODELS.build(config.model)


def test_an_mmengine_model_of_ones_own():
    """The root registry needs no task library at all."""
    backbone = MODELS.build({'type': 'RepNeXt', 'arch': 'm0', 'out_indices': (1, 3)})
    head = nn.Linear(backbone.out_channels[-1], 2)
    assert head(backbone.eval()(torch.randn(1, 3, 64, 64))[-1].mean((2, 3))).shape == (1, 2)
