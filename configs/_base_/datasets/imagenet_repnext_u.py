"""ImageNet as in RepNeXtU's recipe: the RepViT recipe's augmentation, each image once, tested at 256.

Images are read as in that recipe: by Pillow, without turning what EXIF says is turned.
Tested at 256: the shorter side becomes 292 (256 / 0.875) and the center of 256x256 is cut out. That is what the loader
of ConvNeXt, on whose training script the recipe builds, does for an input of 256.
"""

_base_ = './imagenet_repvit.py'

test_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
    dict(type='ResizeEdge', scale=292, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=256),
    dict(type='PackInputs'),
]

train_dataloader = dict(batch_size=512, sampler=dict(sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True)))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
