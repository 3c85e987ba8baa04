"""RTMDet-Ins on RepNeXt-M0: RTMDet whose head also gives each object the convolutions that draw its mask."""

_base_ = 'rtmdet_repnext.py'

model = dict(
    data_preprocessor=dict(pad_mask=True),
    bbox_head=dict(
        _delete_=True,
        type='RTMDetInsSepBNHead',
        num_classes=80,
        in_channels=80,
        feat_channels=80,
        stacked_convs=2,
        share_conv=True,
        pred_kernel_size=1,
        anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=[8, 16, 32]),
        bbox_coder=dict(type='DistancePointBBoxCoder'),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        loss_mask=dict(type='DiceLoss', loss_weight=2.0, eps=5e-6, reduction='mean'),
        norm_cfg=dict(type='BN', requires_grad=True),
        act_cfg=dict(type='SiLU', inplace=True),
    ),
    test_cfg=dict(
        _delete_=True,
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.6),
        max_per_img=100,
        mask_thr_binary=0.5,
    ),
)

# Masks cannot be merged over views: boxes alone are (see mask_rcnn_repnext.py).
tta_model = dict(type='BoxTTAModel')
