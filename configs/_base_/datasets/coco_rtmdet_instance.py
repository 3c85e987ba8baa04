"""COCO 2017 boxes and masks at 640x640 with mosaic and mix-up, as RTMDet-Ins-tiny trains (see coco_rtmdet.py)."""

_base_ = 'coco_rtmdet.py'

image_scale = (640, 640)
load = dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=False)
crop = dict(type='RandomCrop', crop_size=image_scale, recompute_bbox=True, allow_negative_crop=True)
pad = dict(type='Pad', size=image_scale, pad_val=dict(img=(114, 114, 114)))
drop_slivers = dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1))  # what cropping leaves of an object

train_pipeline = [
    dict(type='LoadImageFromFile'),
    load,
    dict(type='CachedMosaic', img_scale=image_scale, pad_val=114.0, max_cached_images=20, random_pop=False),
    dict(type='RandomResize', scale=(1280, 1280), ratio_range=(0.5, 2.0), keep_ratio=True),
    crop,
    dict(type='YOLOXHSVRandomAug'),
    dict(type='RandomFlip', prob=0.5),
    pad,
    dict(
        type='CachedMixUp',
        img_scale=image_scale,
        ratio_range=(1.0, 1.0),
        max_cached_images=10,
        random_pop=False,
        pad_val=(114, 114, 114),
        prob=0.5,
    ),
    drop_slivers,
    dict(type='PackDetInputs'),
]
train_pipeline_at_the_end = [
    dict(type='LoadImageFromFile'),
    load,
    dict(type='RandomResize', scale=image_scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    crop,
    drop_slivers,
    dict(type='YOLOXHSVRandomAug'),
    dict(type='RandomFlip', prob=0.5),
    pad,
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator
