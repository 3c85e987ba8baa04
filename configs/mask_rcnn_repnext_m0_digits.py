"""Mask R-CNN, RepNeXt-M0 from scratch, digit scenes (made on first use): the demo's detector.

Train: python tools/train.py configs/mask_rcnn_repnext_m0_digits.py
Test: python tools/test.py configs/mask_rcnn_repnext_m0_digits.py work_dirs/mask_rcnn_repnext_m0_digits/epoch_1.pth
Both, with a sheet of images: make demo
Expected: box AP 0.63 to 0.65, mask AP 0.57 to 0.59 on held-out scenes; on two CPU cores 8 minutes (Intel Xeon with
AVX-512) or 10 to 14 (AMD EPYC), about 2.6 GB.
"""

_base_ = [
    '_base_/models/mask_rcnn_repnext.py',
    '_base_/datasets/digits_instance.py',
    '_base_/default_runtime_det.py',
]

width = 64  # of the neck and the heads; digits need less than COCO's 256
model = dict(
    neck=dict(out_channels=width, num_outs=4, norm_cfg=dict(type='BN')),
    rpn_head=dict(
        in_channels=width,
        feat_channels=width,
        # Digits are 20 to 90 pixels long and higher than wide.
        anchor_generator=dict(scales=[5], ratios=[1.0, 2.0], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width, finest_scale=28),
        bbox_head=dict(in_channels=width, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(out_channels=width, finest_scale=28),
        mask_head=dict(
            in_channels=width, conv_out_channels=width, num_convs=2, num_classes=10, norm_cfg=dict(type='BN')
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)

epochs = 1
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-3, weight_decay=0.05, foreach=True),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, begin=0, end=epochs, eta_min=0),
]
default_hooks = dict(
    memory_format=dict(type='MemoryFormatHook'),  # channels_last: faster on a CPU
    logger=dict(interval=50),
    checkpoint=dict(interval=epochs, max_keep_ckpts=1, save_best=None),
)
