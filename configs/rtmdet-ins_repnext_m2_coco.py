r"""RTMDet-Ins, RepNeXt-M2, COCO, 300 epochs (8 GPUs x 32 images): masks on a phone.

Train: bash tools/dist_train.sh configs/rtmdet-ins_repnext_m2_coco.py 8
Test: bash tools/dist_test.sh configs/rtmdet-ins_repnext_m2_coco.py \
    work_dirs/rtmdet-ins_repnext_m2_coco/epoch_300.pth 8
One GPU: python tools/train.py configs/rtmdet-ins_repnext_m2_coco.py --auto-scale-lr [--amp]
Expected: not measured: neither we nor the authors have trained it.
The recipe is MMDetection's of RTMDet-Ins-tiny, from weights pre-trained on RGB images, whose order the network keeps.
Cost: neither memory nor hours are known.
"""

_base_ = 'rtmdet-ins_repnext_m0_coco.py'

model = dict(
    backbone=dict(arch='m2', init_cfg=dict(checkpoint='pretrain/repnext_m2_distill_300e.pth')),
    neck=dict(in_channels=[112, 224, 448], out_channels=112),
    bbox_head=dict(in_channels=112, feat_channels=112),
)
