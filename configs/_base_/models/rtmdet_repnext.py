"""RTMDet on RepNeXt-M0; another arch overrides `backbone.arch`, `neck` and `bbox_head` (see rtmdet_repnext_m1_coco.py).

Neck and head are as wide as the first of the three levels that they read, as in RTMDet-tiny and RTMDet-s.
"""

model = dict(
    type='RTMDet',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(type='RepNeXt', arch='m0', out_indices=(1, 2, 3), norm_cfg=dict(type='BN'), norm_eval=False),
    neck=dict(
        type='CSPNeXtPAFPN',
        in_channels=[80, 160, 320],
        out_channels=80,
        num_csp_blocks=1,
        expand_ratio=0.5,
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='SiLU', inplace=True),
    ),
    bbox_head=dict(
        type='RTMDetSepBNHead',
        num_classes=80,
        in_channels=80,
        feat_channels=80,
        stacked_convs=2,
        share_conv=True,  # one set of convolutions for all levels, norms of their own
        pred_kernel_size=1,
        with_objectness=False,
        exp_on_reg=False,
        anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=[8, 16, 32]),
        bbox_coder=dict(type='DistancePointBBoxCoder'),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='SiLU', inplace=True),
    ),
    train_cfg=dict(
        assigner=dict(type='DynamicSoftLabelAssigner', topk=13), allowed_border=-1, pos_weight=-1, debug=False
    ),
    test_cfg=dict(
        nms_pre=30000, min_bbox_size=0, score_thr=0.001, nms=dict(type='nms', iou_threshold=0.65), max_per_img=300
    ),
)

tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.6), max_per_img=100))
