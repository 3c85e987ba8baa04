r"""RTMDet-Ins, RepNeXt-M0, COCO, 300 epochs (8 GPUs x 32 images): masks on a phone.

Train: bash tools/dist_train.sh configs/rtmdet-ins_repnext_m0_coco.py 8
Test: bash tools/dist_test.sh configs/rtmdet-ins_repnext_m0_coco.py \
    work_dirs/rtmdet-ins_repnext_m0_coco/epoch_300.pth 8
One GPU: python tools/train.py configs/rtmdet-ins_repnext_m0_coco.py --auto-scale-lr [--amp]
Expected: not measured: neither we nor the authors have trained it.
The recipe is MMDetection's of RTMDet-Ins-tiny, from weights pre-trained on RGB images, whose order the network keeps.
Cost: neither memory nor hours are known.
"""

_base_ = [
    '_base_/models/rtmdet-ins_repnext.py',
    '_base_/datasets/coco_rtmdet_instance.py',
    '_base_/schedules/rtmdet_300e.py',
    '_base_/default_runtime_det.py',
]

model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='pretrain/repnext_m0_distill_300e.pth')),
)

default_hooks = dict(checkpoint=dict(interval=10))
custom_hooks = [
    dict(type='FuseBackboneHook'),
    dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002, update_buffers=True, priority=49),
    dict(
        type='PipelineSwitchHook',
        switch_epoch=280,  # of 300
        switch_pipeline={{_base_.train_pipeline_at_the_end}},
    ),
]
