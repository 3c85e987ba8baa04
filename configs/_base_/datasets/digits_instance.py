"""Digit scenes with instance masks, 256x256; the files are made on first use."""

dataset_type = 'DigitScenes'
data_root = 'data/digit_scenes'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),  # run-length masks: keep poly2mask=True
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(256, 256), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

train_dataloader = dict(
    batch_size=4,
    num_workers=0,  # loading is fast; on two cores a worker would take time from the step's threads
    drop_last=True,
    sampler=dict(type='SeededSampler', sampler=dict(type='DefaultSampler', shuffle=True)),
    dataset=dict(type=dataset_type, task='instance', split='train', data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type, task='instance', split='val', data_root=data_root, pipeline=test_pipeline, test_mode=True
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type='CocoMetric', ann_file=data_root + '/annotations/instances_validation.json', metric=['bbox', 'segm']
)
test_evaluator = val_evaluator
