"""One tiny network and batch per task, with the heads of mmdet, mmseg and mmpretrain, for one training step."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from tests.configs import CONFIGS
from tests.conftest import randomize
from tests.export.detectors import ANCHORS, DELTAS, FOCAL, dense, rtmdet
from tests.export.networks import TINY
from tests.training.test_distillation import STUDENT
from tests.training.test_logged_loss import Samples, labeled, with_labels_of_pixels, with_objects

FREE = dict(allowed_border=-1, pos_weight=-1, debug=False)


def mask_rcnn() -> dict[str, Any]:
    model = Config.fromfile(CONFIGS / 'mask_rcnn_repnext_m0_digits.py').model.to_dict()
    model['backbone'].update(arch=TINY)
    model['neck']['in_channels'] = list(TINY['embed_dims'])
    return model


def retinanet() -> dict[str, Any]:
    model = dense(
        type='RetinaHead', anchor_generator=ANCHORS, bbox_coder=DELTAS, loss_cls=FOCAL, loss_bbox=dict(type='L1Loss')
    )
    assigner = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1)
    return dict(model, type='RetinaNet', train_cfg=dict(assigner=assigner, sampler=dict(type='PseudoSampler'), **FREE))


def rtm() -> dict[str, Any]:
    head = rtmdet('RTMDetHead', with_objectness=False)
    return dict(head, train_cfg=dict(assigner=dict(type='DynamicSoftLabelAssigner', topk=13), **FREE))


def semantic_fpn() -> dict[str, Any]:
    model = Config.fromfile(CONFIGS / 'semantic_fpn_repnext_m0_digits.py').model.to_dict()
    model['backbone'].update(arch=TINY)
    model['neck']['in_channels'] = list(TINY['embed_dims'])
    model['data_preprocessor'].update(size=(64, 64))  # of the images: class weights fail on padding in mmseg 1.2.2
    return model


def with_boxes(index: int, size: int) -> Any:
    sample = with_objects(index, size)
    del sample.gt_instances.masks  # mmdet's own assigner for RTMDet reads polygons or tensors only
    return sample


TASKS = {  # of what library, the model, what an image is annotated with, its pixels
    'Mask R-CNN': ('mmdet', mask_rcnn, with_objects, 96),
    'RetinaNet': ('mmdet', retinanet, with_boxes, 96),
    'RTMDet': ('mmdet', rtm, with_boxes, 96),
    'Semantic FPN': ('mmseg', semantic_fpn, with_labels_of_pixels, 64),
    'classifier': ('mmpretrain', lambda: STUDENT, labeled, 128),
}


def build(task: str) -> tuple[nn.Module, dict[str, Any]]:
    """A network in training mode, whose norms hide nothing, and a batch as its data loader has it."""
    scope, config, annotated, size = TASKS[task]
    init_default_scope(scope)
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(copy.deepcopy(config())))
    randomize(model.backbone)
    samples = Samples(annotated, size)
    items = [samples[0], samples[1]]
    return model.train(), {key: [item[key] for item in items] for key in ('inputs', 'data_samples')}


def losses_of(
    model: Any, batch: dict[str, Any], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a training step and its parts; what samples boxes draws alike every time."""
    torch.manual_seed(0)
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    total, named = model.parse_losses(model(data['inputs'].to(dtype), data['data_samples'], mode='loss'))
    return total, {name: value.detach() for name, value in named.items()}
