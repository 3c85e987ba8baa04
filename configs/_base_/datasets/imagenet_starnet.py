"""ImageNet as in the StarNet recipe: weak augmentation, either interpolation, tested at 248 -> 224 (crop 0.9).

Images are read as the authors' loader reads them: by Pillow, and as they are stored, whatever orientation their EXIF
names. (OpenCV, the library's default, turns them, and decodes the CMYK images of ImageNet otherwise.)
"""

dataset_type = 'ImageNet'
data_root = 'data/imagenet'
bgr_mean = [103.53, 116.28, 123.675]
bgr_std = [57.375, 57.12, 58.395]

load_image = dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation')
train_pipeline = [
    load_image,
    dict(
        type='RandomChoice',
        transforms=[
            [dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bilinear')],
            [dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic')],
        ],
    ),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=1,
        magnitude_std=0.5,
        hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic'),
    ),
    dict(
        type='RandomErasing',
        erase_prob=0.25,
        mode='rand',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=bgr_mean,
        fill_std=bgr_std,
    ),
    dict(type='PackInputs'),
]
test_pipeline = [
    load_image,
    dict(type='ResizeEdge', scale=248, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=512,
    num_workers=16,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='SeededSampler', sampler=dict(type='DefaultSampler', shuffle=True)),
    dataset=dict(type=dataset_type, data_root=data_root, split='train', data_prefix='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=512,
    num_workers=16,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, split='val', data_prefix='val', pipeline=test_pipeline),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
