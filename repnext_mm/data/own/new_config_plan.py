"""What a config for a user's own data is made from: the published recipes, and the lines that all tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pprint import pformat
from typing import Literal

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


def head_text(plan: Plan) -> str:
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


def backbone_text(plan: Plan) -> str:
    """The lines that choose arch and first weights, and for pyramids the neck's channels."""
    weights = '' if plan.checkpoint is None else f"dict(type='Pretrained', checkpoint={plan.checkpoint!r})"
    line = f'    backbone=dict(arch={plan.arch!r}, init_cfg={weights or None}),'
    if plan.task != 'cls':
        line += f'\n    neck=dict(in_channels={list(ARCHITECTURES[plan.arch].embed_dims)}),'
    return line


def rate_text(plan: Plan) -> str:
    """The scaled learning rate, and the batch that it is for."""
    rate = RECIPES[plan.task].rate * plan.factor
    return (
        f'optim_wrapper = dict(optimizer=dict(lr={rate:.10g}))\n'
        f'auto_scale_lr = dict(base_batch_size={plan.batch * plan.gpus})  # what this rate is for'
    )
