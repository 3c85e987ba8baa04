"""SegFormer's head on RepNeXt-M0; another arch overrides `backbone.arch` and `decode_head.in_channels`."""

data_preprocessor = dict(  # by this name for tools of mmseg, too
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    size=(512, 512),  # of training crops; test images keep their size
)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=data_preprocessor,
    backbone=dict(type='RepNeXt', arch='m0', norm_cfg=dict(type='BN'), norm_eval=False),
    decode_head=dict(
        type='SegformerHead',
        in_channels=[40, 80, 160, 320],
        in_index=[0, 1, 2, 3],
        channels=256,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type='BN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

tta_model = dict(type='SegTTAModel')
