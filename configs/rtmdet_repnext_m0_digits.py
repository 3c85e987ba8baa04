"""RTMDet, RepNeXt-M0 from scratch, digit scenes (made on first use): a detector for a phone.

Train: python tools/train.py configs/rtmdet_repnext_m0_digits.py
Test: python tools/test.py configs/rtmdet_repnext_m0_digits.py work_dirs/rtmdet_repnext_m0_digits/epoch_2.pth
Expected: box AP 0.65 on held-out scenes; 1,500 iterations of 0.33 to 0.41 s on two CPU cores (Intel Xeon with AVX-512),
8 to 10 minutes; 0.65 s on an AMD EPYC with AVX2.
"""

_base_ = [
    '_base_/models/rtmdet_repnext.py',
    '_base_/datasets/digits_instance.py',
    '_base_/default_runtime_det.py',
]

width = 64
model = dict(
    neck=dict(out_channels=width),
    bbox_head=dict(
        num_classes=10,
        in_channels=width,
        feat_channels=width,
        # From scratch, and in so few steps, the focal loss alone finds digits and does not tell them apart.
        loss_cls=dict(type='QualityFocalCrossEntropyLoss'),
    ),
    test_cfg=dict(nms_pre=1000, score_thr=0.01, max_per_img=100),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(256, 256), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator

epochs = 2
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05, foreach=True),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, begin=0, end=epochs, eta_min=0),
]
default_hooks = dict(
    logger=dict(interval=50),
    memory_format=dict(type='MemoryFormatHook'),  # channels_last: a tenth faster on a CPU
    checkpoint=dict(interval=epochs, max_keep_ckpts=1, save_best=None),
)
