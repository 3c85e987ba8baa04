"""ResNet-18 for small images (MMPretrain's), handwritten digits: a small teacher to distill from.

Train: python tools/train.py configs/resnet18_digits_cls.py
Test: python tools/test.py configs/resnet18_digits_cls.py work_dirs/resnet18_digits_cls/epoch_10.pth
Then: configs/repnext_m0_digits_distill.py
"""

_base_ = 'repnext_m0_digits_cls.py'

model = dict(
    backbone=dict(_delete_=True, type='ResNet_CIFAR', depth=18, base_channels=32),
    head=dict(_delete_=True, type='LinearClsHead', num_classes=10, in_channels=256, topk=(1,)),
)

epochs = 10
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
default_hooks = dict(checkpoint=dict(interval=epochs))
custom_hooks = []  # nothing to fuse
