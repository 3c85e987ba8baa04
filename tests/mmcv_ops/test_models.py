"""Whole models of stock configs, random weights: the same losses, gradients and predictions with both operators."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from repnext_mm.mmcv_ops import operators
from .cases import difference
from .swap import needs_compiled, put_operators

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore')]

SIZE = 128
EXACT, BY_OTHER_SUMS = 0.0, 2e-4  # the latter: deformable convolutions sum in another order, and errors add up
BOTH = {  # stock config: largest difference
    'mmdet/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': EXACT,
    'mmdet/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': EXACT,
    'mmdet/cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py': EXACT,
    'mmdet/retinanet/retinanet_r50_fpn_1x_coco.py': EXACT,
    'mmdet/fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': EXACT,
    'mmdet/atss/atss_r50_fpn_1x_coco.py': EXACT,
    'mmdet/rtmdet/rtmdet_tiny_8xb32-300e_coco.py': EXACT,
    'mmdet/rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py': EXACT,
    'mmdet/pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py': EXACT,
    'mmdet/point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py': EXACT,
    'mmdet/dcn/mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py': BY_OTHER_SUMS,
    'mmdet/dcnv2/mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py': BY_OTHER_SUMS,
    'mmdet/tood/tood_r50_fpn_1x_coco.py': BY_OTHER_SUMS,
    'mmdet/deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': BY_OTHER_SUMS,
    'mmdet/dino/dino-4scale_r50_8xb2-12e_coco.py': BY_OTHER_SUMS,
    'mmseg/point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py': EXACT,
    'mmseg/psanet/psanet_r50-d8_4xb4-80k_ade20k-512x512.py': EXACT,
}
OURS_ONLY = [  # compiled for GPUs only
    'mmdet/carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py',
    'mmdet/dcn/faster-rcnn_r50_fpn_dpool_1x_coco.py',
    'mmdet/dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco.py',
    'mmdet/guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco.py',
]


def build(config: str) -> nn.Module:
    package, _, path = config.partition('/')
    pytest.importorskip(package)
    settings = Config.fromfile(str(Path(find_spec(package).origin).parent / '.mim/configs' / path)).model
    init_default_scope(package)
    for part in parts(settings):
        if 'score_thr' in part:
            part['score_thr'] = 0.0  # random weights are sure of nothing
        if part.get('init_cfg', {}) and part['init_cfg'].get('type') == 'Pretrained':
            part['init_cfg'] = None
    if package == 'mmseg':
        settings['pretrained'] = None
    if 'num_queries' in settings:
        settings['num_queries'] = 100  # so small an image has few candidates
    seed()
    model = MODELS.build(settings)
    model.init_weights()
    for name, parameter in model.named_parameters():
        if 'conv_offset' in name:  # they start as zero, where deformable convolutions are plain ones
            nn.init.normal_(parameter, std=0.05)
    MessageHub.get_current_instance().update_info('epoch', 0)  # TOOD's head looks there
    return revert_sync_batchnorm(model)


def parts(settings: Any) -> Iterator[Any]:
    if isinstance(settings, Mapping):
        yield settings
        for value in settings.values():
            yield from parts(value)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from parts(value)


def seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - mmdet's samplers use it
    random.seed(0)


def batch(package: str, with_masks: bool) -> tuple[Tensor, list[Any]]:
    seed()
    meta = {
        'img_shape': (SIZE, SIZE),
        'ori_shape': (SIZE, SIZE),
        'pad_shape': (SIZE, SIZE),
        'batch_input_shape': (SIZE, SIZE),
        'scale_factor': (1.0, 1.0),
        'flip': False,
    }
    inputs, samples = torch.randn(2, 3, SIZE, SIZE), []
    for _ in range(2):
        if package == 'mmseg':
            from mmseg.structures import SegDataSample

            sample = SegDataSample(metainfo=meta)
            sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, SIZE, SIZE)))
        else:
            from mmdet.structures import DetDataSample
            from mmdet.structures.mask import BitmapMasks

            boxes = torch.tensor([[4.0, 8.0, 60.0, 70.0], [50.0, 40.0, 120.0, 124.0], [70.0, 5.0, 100.0, 38.0]])
            masks = np.zeros((3, SIZE, SIZE), np.uint8)
            for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
                mask[top:bottom, left:right] = 1
            sample = DetDataSample(metainfo=meta)
            sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1, 5, 7]))
            if with_masks:
                sample.gt_instances.masks = BitmapMasks(masks, SIZE, SIZE)
            sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=boxes[:0, 0].long())
        samples.append(sample)
    return inputs, samples


def run(model: nn.Module, config: str) -> dict[str, Tensor]:
    """Losses, the norm of every parameter's gradient, and predictions; the model stays as it was."""
    package, with_masks = config.partition('/')[0], any(word in config for word in ('mask-', 'ins_', 'point-'))
    results, model = {}, copy.deepcopy(model)  # training moves the statistics of norms
    inputs, samples = batch(package, with_masks)
    model.train().zero_grad()
    losses = model.loss(inputs, samples)
    for name, value in losses.items():
        results[name] = torch.stack([*value]) if isinstance(value, list | tuple) else value
    sum(value.sum() for name, value in results.items() if 'loss' in name).backward()
    results['gradients'] = torch.stack(
        [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    )
    inputs, samples = batch(package, with_masks)
    with torch.no_grad():
        model.eval()
        for number in range(2):  # one by one, as masked convolutions want it
            (sample,) = model.predict(inputs[number : number + 1], samples[number : number + 1])
            if package == 'mmseg':
                results[f'map {number}'] = sample.seg_logits.data
            else:
                found = sample.pred_instances
                results |= {f'{field} {number}': value for field, value in found.items() if isinstance(value, Tensor)}
    return {name: value.detach() for name, value in results.items()}


def operators_on_a_cpu_too(ext: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have mmcv and mmdet call on a CPU, too, the operators for which they have torch code of their own there."""
    from mmcv.ops import multi_scale_deform_attn as attention
    from mmcv.ops import sigmoid_focal_loss
    from mmdet.models.losses import focal_loss

    def attend(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
        return attention.MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)

    def focal(
        pred: Tensor,
        target: Tensor,
        weight: Any = None,
        gamma: float = 2.0,
        alpha: float = 0.25,
        reduction: str = 'mean',
        avg_factor: Any = None,
    ) -> Tensor:
        classes = torch.where(target.sum(1) > 0, target.argmax(1), target.shape[1])
        loss = sigmoid_focal_loss(pred, classes, gamma, alpha, None, 'none')
        if weight is not None:
            loss = loss * (weight if weight.shape == loss.shape else weight.reshape(len(loss), -1))
        return focal_loss.weight_reduce_loss(loss, None, reduction, avg_factor)

    put_operators(ext, monkeypatch)
    monkeypatch.setattr(attention, 'multi_scale_deformable_attn_pytorch', attend)
    monkeypatch.setattr(focal_loss, 'py_sigmoid_focal_loss', focal)


@needs_compiled
@pytest.mark.parametrize('config', BOTH)
def test_same_with_both_operators(config, monkeypatch):
    import mmcv._ext as compiled

    model = build(config)
    put_operators(compiled, monkeypatch)
    expected = run(model, config)
    put_operators(operators, monkeypatch)
    if 'detr' in config or 'dino' in config:
        operators_on_a_cpu_too(operators, monkeypatch)
    results = run(model, config)
    assert results.keys() == expected.keys() and len(expected) > 3
    errors = {name: difference(results[name], expected[name]) for name in expected}
    assert max(errors.values()) <= BOTH[config], errors
    assert expected['gradients'].isfinite().all()


@pytest.mark.parametrize('config', OURS_ONLY)
def test_runs_on_ours(config, monkeypatch):
    put_operators(operators, monkeypatch)
    results = run(build(config), config)
    assert all(value.isfinite().all() for value in results.values())
    assert len(results['bboxes 0']) > 0
