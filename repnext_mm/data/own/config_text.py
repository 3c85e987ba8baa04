"""The text of configs for a user's own data: the published recipes, and what differs from them, written out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pprint import pformat
from typing import Literal

from repnext_mm.data.own.suffixes import Suffixes
from repnext_mm.models import ARCHITECTURES

Task = Literal['det', 'seg', 'cls']


@dataclass(frozen=True)
class Recipe:
    """A published training recipe: what it inherits, and what its learning rate was chosen for."""

    name: str
    bases: tuple[str, ...]  # below configs/_base_
    rate: float
    rate_batch: int  # images in a step, over all GPUs
    batch: int  # of one GPU, if the user does not say
    size: int  # pixels, if the user does not say
    epochs: int


RECIPES: dict[Task, Recipe] = {
    'det': Recipe(
        'mask_rcnn_repnext',
        ('models/mask_rcnn_repnext', 'datasets/coco_instance', 'schedules/coco_1x', 'default_runtime_det'),
        2e-4,
        16,
        2,
        800,
        12,
    ),
    'seg': Recipe(
        'semantic_fpn_repnext',
        ('models/semantic_fpn_repnext', 'datasets/ade20k', 'schedules/ade20k_80k', 'default_runtime_seg'),
        1e-4,
        16,
        4,
        512,
        64,  # 80,000 iterations on ADE20K's 20,210 images
    ),
    'cls': Recipe(
        'repnext',
        ('models/repnext_classifier', 'schedules/imagenet_repvit', 'default_runtime_cls'),
        4e-3,
        2048,
        64,
        224,
        300,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a config says and its task does not."""

    task: Task
    out: Path
    bases: Sequence[str]  # paths
    data_root: str
    classes: Sequence[str]
    arch: str
    checkpoint: str | None
    images: int  # to train on
    batch: int
    gpus: int
    size: int
    epochs: int

    @property
    def factor(self) -> float:
        """Of the published learning rate: linear in the images of a step."""
        return self.batch * self.gpus / RECIPES[self.task].rate_batch

    @property
    def steps(self) -> int:
        """Iterations of one epoch."""
        return -(-self.images // (self.batch * self.gpus))


def detection_text(plan: Plan, *, masks: bool, annotations: Mapping[str, str], images: Mapping[str, str]) -> str:
    """Mask R-CNN, or Faster R-CNN for boxes only; paths are relative to the data's root, or absolute."""
    scored = annotations['val']
    scored_text = repr(scored) if os.path.isabs(scored) else f'data_root + {"/" + scored!r}'
    count, epochs = len(plan.classes), plan.epochs
    scale = (plan.size * 1333 // 800, plan.size)
    warm_up = max(2, min(500, plan.steps * epochs // 10))
    steps = sorted({max(1, epochs * 2 // 3), max(1, epochs * 11 // 12)})
    mask_heads = f'mask_head=dict(num_classes={count})' if masks else 'mask_roi_extractor=None,\n        mask_head=None'
    metric = ['bbox', 'segm'] if masks else ['bbox']
    kind = '' if masks else "    type='FasterRCNN',  # boxes only\n"
    return f"""{_head_text(plan)}
model = dict(
{kind}{_backbone_text(plan)}
    roi_head=dict(
        bbox_head=dict(num_classes={count}),
        {mask_heads},
    ),
)

image_scale = {scale}  # longest and shortest side, at most
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask={masks}),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask={masks}),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size={plan.batch},
    dataset=dict(
        data_root=data_root,
        ann_file={annotations['train']!r},
        data_prefix=dict(img={images['train']!r}),
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file={annotations['val']!r},
        data_prefix=dict(img={images['val']!r}),
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file={scored_text}, metric={metric})
test_evaluator = val_evaluator

train_cfg = dict(max_epochs={epochs})
{_rate_text(plan)}
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end={warm_up}),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end={epochs}, milestones={steps}, gamma=0.1),
]
"""


def segmentation_text(
    plan: Plan,
    *,
    maps: Mapping[str, str],
    images: Mapping[str, str],
    suffixes: Mapping[str, Suffixes],
    reduce_zero_label: bool,
) -> str:
    """Semantic FPN; paths are relative to the data's root."""
    iterations = plan.steps * plan.epochs
    interval = max(1, iterations // 10)

    def dataset(split: str, pipeline: str) -> str:
        return f"""dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path={images[split]!r}, seg_map_path={maps[split]!r}),
        img_suffix={suffixes[split].image!r},
        seg_map_suffix={suffixes[split].map!r},
        reduce_zero_label={reduce_zero_label},
        metainfo=metainfo,
        pipeline={pipeline},
    )"""

    return f"""{_head_text(plan)}
crop_size = ({plan.size}, {plan.size})
image_scale = ({4 * plan.size}, {plan.size})  # longest and shortest side, at most
model = dict(
    data_preprocessor=dict(size=crop_size),
{_backbone_text(plan)}
    decode_head=dict(num_classes={len(plan.classes)}),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=image_scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='ResizeToMultiple', size_divisor=32),
    dict(type='LoadAnnotations'),  # after the resizing: scored at the original size
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size={plan.batch},
    dataset={dataset('train', 'train_pipeline')},
)
val_dataloader = dict(
    dataset={dataset('val', 'test_pipeline')},
)
test_dataloader = val_dataloader

iterations = {iterations}  # {plan.epochs} x {plan.images} images / {plan.batch * plan.gpus} in a step
train_cfg = dict(max_iters=iterations, val_interval={interval})
default_hooks = dict(checkpoint=dict(interval={interval}))
{_rate_text(plan)}
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min={plan.factor * 1e-6:g}, begin=0, end=iterations, by_epoch=False)
]
"""


def classification_text(plan: Plan, *, folders: Mapping[str, str], suffixes: Sequence[str] | None = None) -> str:
    """RepNeXt's two-headed classifier with the augmentation of the RepViT recipe."""
    count = len(plan.classes)
    topk = (1, 5) if count > 5 else (1,)
    extensions = '' if suffixes is None else f'        extensions={tuple(suffixes)!r},\n'
    return f"""{_head_text(plan)}
model = dict(
    data_preprocessor=dict(num_classes={count}),
{_backbone_text(plan)}
    head=dict(in_channels={ARCHITECTURES[plan.arch].embed_dims[-1]}, num_classes={count}, topk={topk}),
)

bgr_mean = [103.53, 116.28, 123.675]
bgr_std = [57.375, 57.12, 58.395]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale={plan.size}, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),  # omit it where left and right differ
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic'),
    ),
    dict(
        type='RandomErasing',
        erase_prob=0.25,
        mode='rand',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=bgr_mean,
        fill_std=bgr_std,
    ),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale={plan.size * 8 // 7}, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size={plan.size}),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size={plan.batch},
    num_workers=4,
    persistent_workers=True,
    drop_last=True,  # batch norm cannot learn from a last batch of one
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        data_prefix={folders['train']!r},
{extensions}        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size={plan.batch},
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        data_prefix={folders['val']!r},
{extensions}        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk={topk})
test_evaluator = val_evaluator

train_cfg = dict(max_epochs={plan.epochs})
{_rate_text(plan)}
param_scheduler = dict(
    lr_min={1e-5 * plan.factor:g}, warmup_epochs={min(5, plan.epochs // 5)}, warmup_lr={1e-6 * plan.factor:g}
)
"""


def _head_text(plan: Plan) -> str:
    """Docstring, bases, data and classes."""
    recipe, iterations = RECIPES[plan.task], plan.steps * plan.epochs
    last = f'iter_{iterations}' if plan.task == 'seg' else f'epoch_{plan.epochs}'
    classes = pformat(tuple(plan.classes), width=100, compact=True).replace('\n', '\n' + 12 * ' ')
    bases = ''.join(f'    {base!r},\n' for base in plan.bases)
    return (
        f'"""{recipe.name}, arch {plan.arch}, {len(plan.classes)} classes: written by tools/new_config.py.\n\n'
        f'Train: python tools/train.py {plan.out.name}\n'
        f'Test: python tools/test.py {plan.out.name} work_dirs/{plan.out.stem}/{last}.pth\n'
        f'Learning rate: {recipe.rate:g} for {recipe.rate_batch} images a step as published, scaled to '
        f'{plan.batch} on {plan.gpus} GPU{"s" * (plan.gpus > 1)}.\n"""\n\n'
        f'_base_ = [\n{bases}]\n\n'
        f'data_root = {plan.data_root!r}\n'
        f'metainfo = dict(\n    classes={classes}\n)\n'
    )


def _backbone_text(plan: Plan) -> str:
    """The lines that choose arch and first weights, and for pyramids the neck's channels."""
    weights = '' if plan.checkpoint is None else f"dict(type='Pretrained', checkpoint={plan.checkpoint!r})"
    line = f'    backbone=dict(arch={plan.arch!r}, init_cfg={weights or None}),'
    if plan.task != 'cls':
        line += f'\n    neck=dict(in_channels={list(ARCHITECTURES[plan.arch].embed_dims)}),'
    return line


def _rate_text(plan: Plan) -> str:
    """The scaled learning rate, and the batch that it is for."""
    rate = RECIPES[plan.task].rate * plan.factor
    return (
        f'optim_wrapper = dict(optimizer=dict(lr={rate:.10g}))\n'
        f'auto_scale_lr = dict(base_batch_size={plan.batch * plan.gpus})  # what this rate is for'
    )
