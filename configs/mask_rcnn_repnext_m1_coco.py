r"""Mask R-CNN, RepNeXt-M1, COCO, 1x (12 epochs, 8 GPUs x 2 images).

Train: bash tools/dist_train.sh configs/mask_rcnn_repnext_m1_coco.py 8
Test: bash tools/dist_test.sh configs/mask_rcnn_repnext_m1_coco.py \
    work_dirs/mask_rcnn_repnext_m1_coco/epoch_12.pth 8
One GPU: python tools/train.py configs/mask_rcnn_repnext_m1_coco.py --auto-scale-lr [--amp]
Expected: none reported by the authors for this size.
The recipe is the one published for M3 to M5.
Cost: neither memory nor hours are published for this size.
"""

_base_ = [
    '_base_/models/mask_rcnn_repnext.py',
    '_base_/datasets/coco_instance.py',
    '_base_/schedules/coco_1x.py',
    '_base_/default_runtime_det.py',
]

model = dict(
    backbone=dict(arch='m1', init_cfg=dict(type='Pretrained', checkpoint='pretrain/repnext_m1_distill_300e.pth')),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
