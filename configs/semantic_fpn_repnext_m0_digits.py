"""Semantic FPN, RepNeXt-M0 from scratch, digit scenes (made on first use): the demo's segmenter.

Train: python tools/train.py configs/semantic_fpn_repnext_m0_digits.py
Test: python tools/test.py configs/semantic_fpn_repnext_m0_digits.py CHECKPOINT (work_dirs/.../iter_2200.pth)
Both, with a sheet of images: make demo-seg
Expected: mIoU 0.53 over the ten digits of held-out scenes; 9.5 minutes on two CPU cores (AMD EPYC), 1.1 GB.
"""

_base_ = [
    '_base_/models/semantic_fpn_repnext.py',
    '_base_/datasets/digits_semantic.py',
    '_base_/default_runtime_seg.py',
]

width = 64
data_preprocessor = dict(size=(160, 160))
model = dict(
    data_preprocessor=data_preprocessor,
    neck=dict(out_channels=width, norm_cfg=dict(type='BN')),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=width,
        in_index=2,
        channels=width,
        num_convs=1,
        num_classes=11,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', class_weight=[0.2] + [1.0] * 10, loss_weight=0.4),
    ),
    decode_head=dict(
        in_channels=[width] * 4,
        channels=64,
        num_classes=11,
        # Nine pixels of ten are background: unweighted, the network says background everywhere.
        loss_decode=dict(class_weight=[0.2] + [1.0] * 10),
    ),
)

iterations = 2200
train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05, foreach=True),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=iterations, eta_min=0),
]
default_hooks = dict(
    memory_format=dict(type='MemoryFormatHook'),  # channels_last: faster on a CPU
    logger=dict(interval=50),
    checkpoint=dict(interval=iterations, max_keep_ckpts=1, save_best=None),
)
