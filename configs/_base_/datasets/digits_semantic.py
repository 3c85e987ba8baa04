"""Digit scenes with semantic masks: background and ten digits, fed at 160x160, scored at 256x256; made on first use."""

dataset_type = 'DigitScenes'
data_root = 'data/digit_scenes'
crop_size = (160, 160)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=crop_size, keep_ratio=True),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=crop_size, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='SeededSampler', sampler=dict(type='InfiniteSampler', shuffle=True)),
    dataset=dict(type=dataset_type, task='semantic', split='train', data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type, task='semantic', split='val', data_root=data_root, pipeline=test_pipeline, test_mode=True
    ),
)
test_dataloader = val_dataloader

# The mean is taken over the ten digits; background predicted as a digit counts against that digit.
val_evaluator = dict(type='ForegroundIoU', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
