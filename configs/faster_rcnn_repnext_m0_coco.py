r"""Faster R-CNN, RepNeXt-M0, COCO, 1x (12 epochs, 8 GPUs x 2 images).

Train: bash tools/dist_train.sh configs/faster_rcnn_repnext_m0_coco.py 8
Test: bash tools/dist_test.sh configs/faster_rcnn_repnext_m0_coco.py \
    work_dirs/faster_rcnn_repnext_m0_coco/epoch_12.pth 8
One GPU: python tools/train.py configs/faster_rcnn_repnext_m0_coco.py --auto-scale-lr [--amp]
Expected: not measured: neither we nor the authors have trained it.
The recipe is the one published for Mask R-CNN with M3 to M5, without masks.
Cost: neither memory nor hours are known.
"""

_base_ = [
    '_base_/models/faster_rcnn_repnext.py',
    '_base_/datasets/coco_detection.py',
    '_base_/schedules/coco_1x.py',
    '_base_/default_runtime_det.py',
]

model = dict(
    backbone=dict(arch='m0', init_cfg=dict(type='Pretrained', checkpoint='pretrain/repnext_m0_distill_300e.pth')),
    neck=dict(in_channels=[40, 80, 160, 320]),
)
