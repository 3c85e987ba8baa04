r"""Mask R-CNN, RepNeXt-M4, COCO, 1x (12 epochs, 8 GPUs x 2 images).

Train: bash tools/dist_train.sh configs/mask_rcnn_repnext_m4_coco.py 8
Test: bash tools/dist_test.sh configs/mask_rcnn_repnext_m4_coco.py \
    work_dirs/mask_rcnn_repnext_m4_coco/epoch_12.pth 8
One GPU: python tools/train.py configs/mask_rcnn_repnext_m4_coco.py --auto-scale-lr [--amp]
Expected: box AP 42.9, mask AP 39.1 as reported by the authors: the best epoch (9) of 8 GPUs (42.87 / 39.11); its last
epoch is 42.65 / 39.05.
Differences: a second published log is a 4-GPU run, batch 8 at the same rate: 42.66 / 39.17 at its last epoch.
Cost: 8.2 GB a GPU at 2 images, as logged by the authors on 8 RTX 4090 D; hours are not published.
"""

_base_ = [
    '_base_/models/mask_rcnn_repnext.py',
    '_base_/datasets/coco_instance.py',
    '_base_/schedules/coco_1x.py',
    '_base_/default_runtime_det.py',
]

model = dict(
    backbone=dict(arch='m4', init_cfg=dict(type='Pretrained', checkpoint='pretrain/repnext_m4_distill_300e.pth')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
