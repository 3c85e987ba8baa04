r"""Semantic FPN, RepNeXt-M2, ADE20K, 80k iterations (4 GPUs x 4 images).

Train: bash tools/dist_train.sh configs/semantic_fpn_repnext_m2_ade20k.py 4
Test: bash tools/dist_test.sh configs/semantic_fpn_repnext_m2_ade20k.py \
    work_dirs/semantic_fpn_repnext_m2_ade20k/iter_80000.pth 4
One GPU: python tools/train.py configs/semantic_fpn_repnext_m2_ade20k.py --auto-scale-lr [--amp]
Expected: none reported by the authors for this size.
The recipe is the one published for M3 to M5.
Cost: neither memory nor hours are published for this size.
"""

_base_ = [
    '_base_/models/semantic_fpn_repnext.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/ade20k_80k.py',
    '_base_/default_runtime_seg.py',
]

model = dict(
    backbone=dict(arch='m2', init_cfg=dict(type='Pretrained', checkpoint='pretrain/repnext_m2_distill_300e.pth')),
    neck=dict(in_channels=[56, 112, 224, 448]),
)
