"""Tiny detectors of mmdet, one per head that is exported, as configs."""

from __future__ import annotations

from typing import Any

from tests.export.networks import TINY

WIDTH, CLASSES = 16, 3
CHANNELS = list(TINY['embed_dims'])
PIXELS = dict(
    type='DetDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_size_divisor=32,
)
ANCHORS = dict(type='AnchorGenerator', ratios=[0.5, 1.0], octave_base_scale=4, scales_per_octave=1)
SQUARES = dict(type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1)
DELTAS = dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2])
POINTS = dict(type='MlvlPointGenerator', offset=0)
NMS = dict(type='nms', iou_threshold=0.6)
FOCAL = dict(type='FocalLoss', use_sigmoid=True)
GIOU = dict(type='GIoULoss')


def dense(**head: Any) -> dict[str, Any]:
    strides = [8, 16, 32]
    head = dict(num_classes=CLASSES, in_channels=WIDTH, feat_channels=WIDTH, stacked_convs=1, **head)
    for key in ('anchor_generator',):
        if key in head:
            head[key] = dict(head[key], strides=strides)
    return dict(
        type='SingleStageDetector',
        data_preprocessor=PIXELS,
        backbone=dict(type='RepNeXt', arch=TINY, out_indices=(1, 2, 3)),
        neck=dict(type='FPN', in_channels=CHANNELS[1:], out_channels=WIDTH, num_outs=3),
        bbox_head=head,
        test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.02, nms=NMS, max_per_img=30),
    )


def two_stage(kind: str, *, masks: bool, stages: int) -> dict[str, Any]:
    coder = dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2])

    def extractor(size: int) -> dict[str, Any]:
        return dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=size, sampling_ratio=0),
            out_channels=WIDTH,
            featmap_strides=[4, 8, 16, 32],
        )

    box = dict(
        type='Shared2FCBBoxHead',
        in_channels=WIDTH,
        fc_out_channels=32,
        roi_feat_size=7,
        num_classes=CLASSES,
        bbox_coder=coder,
        reg_class_agnostic=stages > 1,
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False),
        loss_bbox=dict(type='L1Loss'),
    )
    head = dict(
        type='StandardRoIHead',
        bbox_roi_extractor=extractor(7),
        bbox_head=box,
    )
    if stages > 1:
        head |= dict(
            type='CascadeRoIHead', num_stages=stages, stage_loss_weights=[1] * stages, bbox_head=[box] * stages
        )
    if masks:
        head |= dict(
            mask_roi_extractor=extractor(14),
            mask_head=dict(
                type='FCNMaskHead',
                num_convs=1,
                in_channels=WIDTH,
                conv_out_channels=WIDTH,
                num_classes=CLASSES,
                loss_mask=dict(type='CrossEntropyLoss', use_mask=True),
            ),
        )
    return dict(
        type=kind,
        data_preprocessor=dict(PIXELS, pad_mask=masks),
        backbone=dict(type='RepNeXt', arch=TINY),
        neck=dict(type='FPN', in_channels=CHANNELS, out_channels=WIDTH, num_outs=5),
        rpn_head=dict(
            type='RPNHead',
            in_channels=WIDTH,
            feat_channels=WIDTH,
            anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0], strides=[4, 8, 16, 32, 64]),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
            loss_bbox=dict(type='L1Loss'),
        ),
        roi_head=head,
        train_cfg=None,
        test_cfg=dict(
            rpn=dict(nms_pre=100, max_per_img=50, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
            rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20, mask_thr_binary=0.5),
        ),
    )


def rtmdet(kind: str, **head: Any) -> dict[str, Any]:
    model = dense(
        type=kind,
        anchor_generator=dict(POINTS),
        bbox_coder=dict(type='DistancePointBBoxCoder'),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0),
        loss_bbox=GIOU,
        norm_cfg=dict(type='BN'),
        **head,
    )
    return dict(model, type='RTMDet', data_preprocessor=dict(PIXELS, bgr_to_rgb=False, pad_size_divisor=1))


DETECTORS = {
    'faster_rcnn': two_stage('FasterRCNN', masks=False, stages=1),
    'mask_rcnn': two_stage('MaskRCNN', masks=True, stages=1),
    'cascade_mask_rcnn': two_stage('CascadeRCNN', masks=True, stages=3),
    'retinanet': dense(
        type='RetinaHead', anchor_generator=ANCHORS, bbox_coder=DELTAS, loss_cls=FOCAL, loss_bbox=dict(type='L1Loss')
    ),
    'fcos': dense(
        type='FCOSHead',
        strides=[8, 16, 32],
        regress_ranges=((-1, 64), (64, 128), (128, 1e8)),
        norm_on_bbox=True,
        norm_cfg=dict(type='BN'),
    ),
    'atss': dense(
        type='ATSSHead',
        anchor_generator=SQUARES,
        bbox_coder=DELTAS,
        norm_cfg=dict(type='BN'),
        loss_cls=FOCAL,
        loss_bbox=GIOU,
    ),
    'gfl': dense(
        type='GFLHead',
        anchor_generator=SQUARES,
        reg_max=8,
        norm_cfg=dict(type='BN'),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0),
        loss_dfl=dict(type='DistributionFocalLoss'),
        loss_bbox=GIOU,
    ),
    'rtmdet': rtmdet('RTMDetSepBNHead', share_conv=True, pred_kernel_size=1),
    'rtmdet_ins': rtmdet(
        'RTMDetInsSepBNHead',
        share_conv=True,
        pred_kernel_size=1,
        loss_mask=dict(type='DiceLoss', eps=5e-6, reduction='mean'),
    ),
}
DETECTORS['rtmdet_ins']['test_cfg']['mask_thr_binary'] = 0.5
