r"""RepNeXt-u3-tiny, ImageNet, its authors' recipe, 450 epochs (8 GPUs x 512 images).

Train: bash tools/dist_train.sh configs/repnext_u3_tiny_imagenet.py 8 --amp
Test: bash tools/dist_test.sh configs/repnext_u3_tiny_imagenet.py \
    work_dirs/repnext_u3_tiny_imagenet/epoch_450.pth 8
One GPU: python tools/train.py configs/repnext_u3_tiny_imagenet.py --auto-scale-lr --amp
Expected: unknown; its authors publish neither accuracy nor weights.
Differences: their table tests at 256, their commands at 224; this tests at 256 (shorter side 292, center 256x256).
Their color jitter of 0.4 does nothing beside RandAugment (timm leaves it out then), so it is not here.
"""

_base_ = [
    '_base_/models/repnext_u_classifier.py',
    '_base_/datasets/imagenet_repnext_u.py',
    '_base_/schedules/imagenet_repnext_u.py',
    '_base_/default_runtime_cls.py',
]

model = dict(backbone=dict(arch='tiny', drop_path_rate=0.1), head=dict(in_channels=768))

custom_hooks = [
    dict(type='FuseBackboneHook'),
    dict(type='EMAHook', momentum=1e-4, update_buffers=True),  # averaged weights, decay 0.9999, are what is tested
]
