"""Three trainings of a few seconds, one per task: everything random that our recipes have, the real tool, real data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.tools.running import ROOT

SHARED = """
randomness = dict(seed=0)
test_dataloader = None
test_evaluator = None
test_cfg = None
"""

DETECTION = """
_base_ = ['{root}/configs/mask_rcnn_repnext_m0_digits.py']
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
scenes = dict(train=4, val=2, size=128)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(data_root='{data}', scenes=scenes, pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(data_root='{data}', scenes=scenes)
)
val_evaluator = dict(ann_file='{data}/annotations/instances_validation.json')
model = dict(backbone=dict(drop_path_rate=0.2))
train_cfg = dict(max_epochs={length}, val_interval=1)
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, begin=0, end={length}, eta_min=1e-5),
]
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(interval=1, max_keep_ckpts=1, save_best='coco/bbox_mAP')
)
"""

SEGMENTATION = """
_base_ = ['{root}/configs/semantic_fpn_repnext_m0_digits.py']
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(96, 96), ratio_range=(0.7, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(64, 64)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
scenes = dict(train=16, val=2, size=128)
train_dataloader = dict(
    batch_size=4, num_workers=2, dataset=dict(data_root='{data}', scenes=scenes, pipeline=train_pipeline)
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(data_root='{data}', scenes=scenes)
)
model = dict(data_preprocessor=dict(size=(64, 64)), backbone=dict(drop_path_rate=0.2))
train_cfg = dict(max_iters={iterations}, val_interval=4)
param_scheduler = [dict(type='PolyLR', power=0.9, by_epoch=False, begin=0, end={iterations}, eta_min=1e-5)]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=4, max_keep_ckpts=1, save_best='mIoU'))
"""

CLASSIFICATION = """
_base_ = ['{root}/configs/repnext_m0_digits_cls.py']
train_dataloader = dict(
    batch_size=8, num_workers=1, dataset=dict(data_root='{data}', indices=list(range(0, 1433, 45)))
)
val_dataloader = dict(
    batch_size=16, num_workers=0, persistent_workers=False,
    dataset=dict(data_root='{data}', indices=list(range(0, 364, 11))),
)
model = dict(
    backbone=dict(drop_path_rate=0.2),
    train_cfg=dict(_delete_=True, augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
custom_hooks = [dict(type='FuseBackboneHook'), dict(type='EMAHook', momentum=0.02)]
train_cfg = dict(max_epochs={length}, val_interval=1)
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(interval=1, max_keep_ckpts=2, save_best='accuracy/top1')
)
"""


@dataclass(frozen=True)
class KillTask:
    """A config, and how its checkpoints are called."""

    name: str
    text: str
    unit: str = 'epoch'
    steps: int = 1  # of the unit, between checkpoints

    def write_config(self, folder: Path, *, length: int) -> Path:
        """The config of a training that saves ``length`` checkpoints."""
        path = folder / f'{self.name}.py'
        values = dict(root=ROOT, data=folder / f'data_{self.name}', length=length, iterations=4 * length)
        path.write_text(self.text.format(**values) + SHARED)
        return path

    def last(self, *, length: int) -> str:
        """The name of the last checkpoint."""
        return f'{self.unit}_{length * self.steps}.pth'


TASKS = (
    KillTask('detection', DETECTION),
    KillTask('segmentation', SEGMENTATION, 'iter', 4),
    KillTask('classification', CLASSIFICATION),
)
