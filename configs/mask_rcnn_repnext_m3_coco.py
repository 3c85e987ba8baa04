r"""Mask R-CNN, RepNeXt-M3, COCO, 1x (12 epochs, 8 GPUs x 2 images).

Train: bash tools/dist_train.sh configs/mask_rcnn_repnext_m3_coco.py 8
Test: bash tools/dist_test.sh configs/mask_rcnn_repnext_m3_coco.py \
    work_dirs/mask_rcnn_repnext_m3_coco/epoch_12.pth 8
One GPU: python tools/train.py configs/mask_rcnn_repnext_m3_coco.py --auto-scale-lr [--amp]
Expected: box AP 40.8, mask AP 37.8 as reported by the authors: the best epoch (9) of 8 GPUs (40.82 / 37.76); its last
epoch is 40.66 / 37.67.
Differences: a second published log is a 4-GPU run, batch 8 at the same rate: 40.73 / 37.76 at its last epoch.
Cost: 5.8 GB a GPU at 2 images, as logged by the authors on 8 RTX 4090 D; hours are not published.
"""

_base_ = [
    '_base_/models/mask_rcnn_repnext.py',
    '_base_/datasets/coco_instance.py',
    '_base_/schedules/coco_1x.py',
    '_base_/default_runtime_det.py',
]

model = dict(
    backbone=dict(arch='m3', init_cfg=dict(type='Pretrained', checkpoint='pretrain/repnext_m3_distill_300e.pth')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
