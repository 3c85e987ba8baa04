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
Model = Literal[
    'mask-rcnn',
    'faster-rcnn',
    'retinanet',
    'rtmdet',
    'rtmdet-ins',
    'semantic-fpn',
    'upernet',
    'segformer-head',
    'classifier',
]


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
    task: Task = 'det'
    masks: bool = False  # it learns masks, and needs them


_SEGMENTATION = ('datasets/ade20k', 'schedules/ade20k_80k', 'default_runtime_seg')
_PHONE = ('schedules/rtmdet_300e', 'default_runtime_det')
RECIPES: dict[Model, Recipe] = {
    'mask-rcnn': Recipe(
        'mask_rcnn_repnext',
        ('models/mask_rcnn_repnext', 'datasets/coco_instance', 'schedules/coco_1x', 'default_runtime_det'),
        2e-4,
        16,
        2,
        800,
        12,
        masks=True,
    ),
    'faster-rcnn': Recipe(
        'faster_rcnn_repnext',
        ('models/faster_rcnn_repnext', 'datasets/coco_detection', 'schedules/coco_1x', 'default_runtime_det'),
        2e-4,
        16,
        2,
        800,
        12,
    ),
    'retinanet': Recipe(
        'retinanet_repnext',
        ('models/retinanet_repnext', 'datasets/coco_detection', 'schedules/coco_1x', 'default_runtime_det'),
        1e-4,
        16,
        2,
        800,
        12,
    ),
    'rtmdet': Recipe(
        'rtmdet_repnext', ('models/rtmdet_repnext', 'datasets/coco_rtmdet', *_PHONE), 4e-3, 256, 8, 640, 300
    ),
    'rtmdet-ins': Recipe(
        'rtmdet-ins_repnext',
        ('models/rtmdet-ins_repnext', 'datasets/coco_rtmdet_instance', *_PHONE),
        4e-3,
        256,
        8,
        640,
        300,
        masks=True,
    ),
    # 64 epochs: 80,000 iterations on ADE20K's 20,210 images
    'semantic-fpn': Recipe(
        'semantic_fpn_repnext', ('models/semantic_fpn_repnext', *_SEGMENTATION), 1e-4, 16, 4, 512, 64, task='seg'
    ),
    'upernet': Recipe('upernet_repnext', ('models/upernet_repnext', *_SEGMENTATION), 1e-4, 16, 4, 512, 64, task='seg'),
    'segformer-head': Recipe(
        'segformer_head_repnext', ('models/segformer_head_repnext', *_SEGMENTATION), 1e-4, 16, 4, 512, 64, task='seg'
    ),
    'classifier': Recipe(
        'repnext',
        ('models/repnext_classifier', 'schedules/imagenet_repvit', 'default_runtime_cls'),
        4e-3,
        2048,
        64,
        224,
        300,
        task='cls',
    ),
}
DEFAULTS: dict[Task, Model] = {'det': 'mask-rcnn', 'seg': 'semantic-fpn', 'cls': 'classifier'}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a config says and its task does not."""

    model: Model
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
    def recipe(self) -> Recipe:
        """That of the model."""
        return RECIPES[self.model]

    @property
    def factor(self) -> float:
        """Of the published learning rate: linear in the images of a step."""
        return self.batch * self.gpus / self.recipe.rate_batch

    @property
    def steps(self) -> int:
        """Iterations of one epoch."""
        return -(-self.images // (self.batch * self.gpus))

    @property
    def dims(self) -> list[int]:
        """Channels of the backbone's four levels."""
        return list(ARCHITECTURES[self.arch].embed_dims)


def detection_text(plan: Plan, *, polygons: bool, annotations: Mapping[str, str], images: Mapping[str, str]) -> str:
    """A detector; paths are relative to the data's root, or absolute.

    ``polygons``: all masks are polygons. As such they take less memory in a mosaic, and mmdet would ignore others.
    """
    scored = annotations['val']
    scored_text = repr(scored) if os.path.isabs(scored) else f'data_root + {"/" + scored!r}'
    metric = ['bbox', 'segm'] if plan.recipe.masks else ['bbox']
    phone = plan.model.startswith('rtmdet')
    load = f"dict(type='LoadAnnotations', with_bbox=True, with_mask={plan.recipe.masks})"
    if plan.model == 'rtmdet-ins':
        load = load.replace(')', f', poly2mask={not polygons})')
    return f"""{_head_text(plan)}
{_detector_text(plan)}
{_mosaic_pipelines(plan, load) if phone else _scale_pipelines(plan, load)}
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

{_rtmdet_schedule(plan) if phone else _step_schedule(plan)}"""


def _detector_text(plan: Plan) -> str:
    count, backbone = len(plan.classes), _backbone_text(plan)
    if plan.model.startswith('rtmdet'):
        width = plan.dims[1]
        return f"""model = dict(
{backbone}
    neck=dict(in_channels={plan.dims[1:]}, out_channels={width}),
    bbox_head=dict(num_classes={count}, in_channels={width}, feat_channels={width}),
)
"""
    heads = f'bbox_head=dict(num_classes={count})'
    if plan.recipe.masks:
        heads += f', mask_head=dict(num_classes={count})'
    return f"""model = dict(
{backbone}
    neck=dict(in_channels={plan.dims}),
    {heads if plan.model == 'retinanet' else f'roi_head=dict({heads})'},
)
"""


def _scale_pipelines(plan: Plan, load: str) -> str:
    return f"""image_scale = {(plan.size * 1333 // 800, plan.size)}  # longest and shortest side, at most
train_pipeline = [
    dict(type='LoadImageFromFile'),
    {load},
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
{_test_pipeline(load)}"""


def _mosaic_pipelines(plan: Plan, load: str) -> str:
    """Mosaic and mix-up, and the pipeline without them that the last epochs train with."""
    crop = "dict(type='RandomCrop', crop_size=image_scale)"
    slivers = ''
    if plan.recipe.masks:
        crop = crop.replace(')', ', recompute_bbox=True, allow_negative_crop=True)')
        slivers = "    dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)),\n"
    augmented = f"""    {crop},
    dict(type='YOLOXHSVRandomAug'),
    dict(type='RandomFlip', prob=0.5),  # omit it where left and right differ
    dict(type='Pad', size=image_scale, pad_val=dict(img=(114, 114, 114))),
"""
    return f"""image_scale = {(plan.size, plan.size)}
cached = dict(random_pop=False, pad_val=114.0)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    {load},
    dict(type='CachedMosaic', img_scale=image_scale, max_cached_images=20, **cached),
    dict(type='RandomResize', scale={(2 * plan.size, 2 * plan.size)}, ratio_range=(0.5, 2.0), keep_ratio=True),
{augmented}    dict(
        type='CachedMixUp', img_scale=image_scale, ratio_range=(1.0, 1.0), max_cached_images=10, prob=0.5, **cached
    ),
{slivers}    dict(type='PackDetInputs'),
]
train_pipeline_at_the_end = [
    dict(type='LoadImageFromFile'),
    {load},
    dict(type='RandomResize', scale=image_scale, ratio_range=(0.5, 2.0), keep_ratio=True),
{augmented}{slivers}    dict(type='PackDetInputs'),
]
{_test_pipeline(load.replace(', poly2mask=False', ''))}"""


def _test_pipeline(load: str) -> str:
    return f"""test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    {load},
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]"""


def _step_schedule(plan: Plan) -> str:
    epochs = plan.epochs
    warm_up = max(2, min(500, plan.steps * epochs // 10))
    steps = sorted({max(1, epochs * 2 // 3), max(1, epochs * 11 // 12)})
    return f"""train_cfg = dict(max_epochs={epochs})
{_rate_text(plan)}
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end={warm_up}),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end={epochs}, milestones={steps}, gamma=0.1),
]
"""


def _rtmdet_schedule(plan: Plan) -> str:
    """The published one over other epochs: a cosine over the second half, no mosaic in the last fifteenth."""
    epochs = plan.epochs
    warm_up = max(2, min(1000, plan.steps * epochs // 10))
    half, last, interval = epochs // 2, epochs - max(1, epochs // 15), max(1, epochs // 30)
    return f"""train_cfg = dict(max_epochs={epochs}, val_interval={interval}, dynamic_intervals=[({last}, 1)])
default_hooks = dict(checkpoint=dict(interval={interval}))
custom_hooks = [
    dict(type='FuseBackboneHook'),
    dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002, update_buffers=True, priority=49),
    dict(type='PipelineSwitchHook', switch_epoch={last}, switch_pipeline=train_pipeline_at_the_end),
]
{_rate_text(plan)}
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end={warm_up}),
    dict(
        type='CosineAnnealingLR',
        eta_min={plan.recipe.rate * plan.factor / 20:.10g},
        begin={half},
        end={epochs},
        T_max={epochs - half},
        by_epoch=True,
        convert_to_iter_based=True,
    ),
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
    """A segmentor; paths are relative to the data's root."""
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
{_segmentor_heads(plan)}
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


def _segmentor_heads(plan: Plan) -> str:
    count = len(plan.classes)
    if plan.model == 'semantic-fpn':
        return f'    neck=dict(in_channels={plan.dims}),\n    decode_head=dict(num_classes={count}),'
    head = f'    decode_head=dict(in_channels={plan.dims}, num_classes={count}),'
    if plan.model == 'upernet':
        head += f'\n    auxiliary_head=dict(in_channels={plan.dims[2]}, num_classes={count}),'
    return head


def classification_text(plan: Plan, *, folders: Mapping[str, str], suffixes: Sequence[str] | None = None) -> str:
    """RepNeXt's two-headed classifier with the augmentation of the RepViT recipe."""
    count = len(plan.classes)
    topk = (1, 5) if count > 5 else (1,)
    extensions = '' if suffixes is None else f'        extensions={tuple(suffixes)!r},\n'
    return f"""{_head_text(plan)}
model = dict(
    data_preprocessor=dict(num_classes={count}),
{_backbone_text(plan)}
    head=dict(in_channels={plan.dims[-1]}, num_classes={count}, topk={topk}),
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
    recipe, iterations = plan.recipe, plan.steps * plan.epochs
    last = f'iter_{iterations}' if recipe.task == 'seg' else f'epoch_{plan.epochs}'
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
    """The line that chooses arch and first weights."""
    weights = '' if plan.checkpoint is None else f"dict(type='Pretrained', checkpoint={plan.checkpoint!r})"
    return f'    backbone=dict(arch={plan.arch!r}, init_cfg={weights or None}),'


def _rate_text(plan: Plan) -> str:
    """The scaled learning rate, and the batch that it is for."""
    rate = plan.recipe.rate * plan.factor
    return (
        f'optim_wrapper = dict(optimizer=dict(lr={rate:.10g}))\n'
        f'auto_scale_lr = dict(base_batch_size={plan.batch * plan.gpus})  # what this rate is for'
    )
