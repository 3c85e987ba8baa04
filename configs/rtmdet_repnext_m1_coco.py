r"""RTMDet, RepNeXt-M1, COCO, 300 epochs (8 GPUs x 32 images): boxes on a phone.

Train: bash tools/dist_train.sh configs/rtmdet_repnext_m1_coco.py 8
Test: bash tools/dist_test.sh configs/rtmdet_repnext_m1_coco.py \
    work_dirs/rtmdet_repnext_m1_coco/epoch_300.pth 8
One GPU: python tools/train.py configs/rtmdet_repnext_m1_coco.py --auto-scale-lr [--amp]
Expected: not measured: neither we nor the authors have trained it.
The recipe is MMDetection's of RTMDet-tiny, from weights pre-trained on RGB images, whose order the network keeps.
Cost: neither memory nor hours are known.
"""

_base_ = 'rtmdet_repnext_m0_coco.py'

model = dict(
    backbone=dict(arch='m1', init_cfg=dict(checkpoint='pretrain/repnext_m1_distill_300e.pth')),
    neck=dict(in_channels=[96, 192, 384], out_channels=96),
    bbox_head=dict(in_channels=96, feat_channels=96),
)
