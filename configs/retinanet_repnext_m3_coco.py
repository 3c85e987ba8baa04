r"""RetinaNet, RepNeXt-M3, COCO, 1x (12 epochs, 8 GPUs x 2 images).

Train: bash tools/dist_train.sh configs/retinanet_repnext_m3_coco.py 8
Test: bash tools/dist_test.sh configs/retinanet_repnext_m3_coco.py \
    work_dirs/retinanet_repnext_m3_coco/epoch_12.pth 8
One GPU: python tools/train.py configs/retinanet_repnext_m3_coco.py --auto-scale-lr [--amp]
Expected: not measured: neither we nor the authors have trained it.
The recipe is the one published for Mask R-CNN with M3 to M5, at half of its rate, as RetinaNet is trained with AdamW.
Cost: neither memory nor hours are known.
"""

_base_ = [
    '_base_/models/retinanet_repnext.py',
    '_base_/datasets/coco_detection.py',
    '_base_/schedules/coco_1x.py',
    '_base_/default_runtime_det.py',
]

model = dict(
    backbone=dict(arch='m3', init_cfg=dict(type='Pretrained', checkpoint='pretrain/repnext_m3_distill_300e.pth')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

optim_wrapper = dict(optimizer=dict(lr=1e-4))
