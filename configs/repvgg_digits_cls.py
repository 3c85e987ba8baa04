"""A small RepVGG (MMPretrain's) on handwritten digits: every 3x3 trains with a 1x1 and an identity beside it.

Train: python tools/train.py configs/repvgg_digits_cls.py
Test: python tools/test.py configs/repvgg_digits_cls.py work_dirs/repvgg_digits_cls/epoch_20.pth
Both, folded and compared with RepNeXt-M0: make demo-reparam
"""

_base_ = 'repnext_m0_digits_cls.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='RepVGG',
        arch=dict(num_blocks=[2, 2, 4, 1], width_factor=[1, 1, 1, 1], group_layer_map=None, se_cfg=None),
        base_channels=32,
        strides=(1, 2, 2, 1),  # images of 32x32 pixels end as 4x4
        out_indices=(3,),
    ),
    head=dict(_delete_=True, type='LinearClsHead', num_classes=10, in_channels=256, topk=(1,)),
)
