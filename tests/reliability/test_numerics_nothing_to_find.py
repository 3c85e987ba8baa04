"""Images without objects, and labels that are all ignored: losses, gradients and predictions are numbers."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from repnext_mm.hooks import FuseBackboneHook
from tests.configs import CONFIGS


@pytest.mark.parametrize('counts', [(0, 0), (0, 2), (0,)], ids=str)
def test_detection(counts):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    model, samples = _built('mask_rcnn_repnext_m0_digits.py'), []
    for count in counts:
        boxes = torch.tensor([[4.0, 4.0, 40.0, 60.0], [50.0, 20.0, 90.0, 80.0]])[:count]
        masks = torch.zeros(count, 96, 96, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        sample = DetDataSample(
            metainfo={
                'img_shape': (96, 96),
                'ori_shape': (96, 96),
                'scale_factor': (1.0, 1.0),
                'pad_shape': (96, 96),
                'batch_input_shape': (96, 96),
            }
        )
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=torch.zeros(count, dtype=torch.long), masks=BitmapMasks(masks.numpy(), 96, 96)
        )
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    images = [torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8) for _ in counts]
    _step({'inputs': images, 'data_samples': samples}, model)
    for network in (model, FuseBackboneHook().fuse_backbone(model.eval())[0]):
        blank = {'inputs': [torch.zeros(3, 96, 96, dtype=torch.uint8) for _ in counts], 'data_samples': samples}
        for found in network.test_step(blank):
            assert torch.isfinite(found.pred_instances.bboxes).all()
            assert len(found.pred_instances.masks) == len(found.pred_instances.bboxes)


@pytest.mark.parametrize('ignored', [(True, True), (True, False)], ids=str)
def test_segmentation(ignored):
    import mmseg
    from mmengine.structures import PixelData
    from mmengine.utils import digit_version
    from mmseg.structures import SegDataSample

    if digit_version(mmseg.__version__) < digit_version('1.3'):
        pytest.skip('mmseg 1.2 looks up a class weight for the label of ignored pixels')

    model, samples = _built('semantic_fpn_repnext_m0_digits.py'), []
    for every in ignored:
        labels = torch.full((1, 96, 96), 255) if every else torch.randint(0, 11, (1, 96, 96))
        sample = SegDataSample(metainfo={'img_shape': (96, 96), 'ori_shape': (96, 96), 'pad_shape': (96, 96)})
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    images = [torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8) for _ in ignored]
    _step({'inputs': images, 'data_samples': samples}, model)
    for network in (model, FuseBackboneHook().fuse_backbone(model.eval())[0]):
        for found in network.test_step({'inputs': images, 'data_samples': samples}):
            assert found.pred_sem_seg.data.shape == (1, 96, 96)
            assert torch.isfinite(found.seg_logits.data).all()


def _built(name):
    config = Config.fromfile(CONFIGS / name)
    init_default_scope(config.default_scope)
    torch.manual_seed(0)
    config.model.backbone.update(arch={'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)})
    config.model.neck.in_channels = [8, 16, 32, 64]
    if 'size' in config.model.data_preprocessor:
        config.model.data_preprocessor.size = (96, 96)
    return MODELS.build(config.model).train()


def _step(data, model):
    """One training step: every loss and every gradient is a number."""
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    total, logged = model.parse_losses(losses)
    assert logged
    assert all(torch.isfinite(value).all() for value in logged.values()), logged
    total.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert any(name.startswith('backbone') for name in gradients)
    for name, gradient in gradients.items():
        assert torch.isfinite(gradient).all(), name
