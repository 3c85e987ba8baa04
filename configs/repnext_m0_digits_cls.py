"""RepNeXt-M0 from scratch, handwritten digits (made on first use): the demo's classifier.

Train: python tools/train.py configs/repnext_m0_digits_cls.py
Test: python tools/test.py configs/repnext_m0_digits_cls.py work_dirs/repnext_m0_digits_cls/epoch_20.pth
Both, with a sheet of images: make demo-cls
"""

_base_ = [
    '_base_/models/repnext_classifier.py',
    '_base_/datasets/digits_images.py',
    '_base_/default_runtime_cls.py',
]

model = dict(
    data_preprocessor=dict(num_classes=10),
    backbone=dict(arch='m0'),
    head=dict(in_channels=320, num_classes=10, topk=(1,)),
    train_cfg=None,
)

epochs = 20
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='AdaptiveClipOptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05, foreach=True),
    clip_grad=dict(clip_factor=0.02),
    constructor='JoinedGroupsConstructor',
    paramwise_cfg=dict(flat_decay_mult=0.0),  # norms, biases, layer scales: no parameter of one dimension decays
)
param_scheduler = dict(type='TimmCosineLR', lr_min=1e-5, warmup_epochs=2, warmup_lr=1e-5)
default_hooks = dict(
    memory_format=dict(type='MemoryFormatHook'),  # channels_last: faster on a CPU
    logger=dict(interval=10),
    checkpoint=dict(interval=epochs, max_keep_ckpts=1, save_best=None),
)
