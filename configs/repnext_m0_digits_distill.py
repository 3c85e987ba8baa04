"""RepNeXt-M0 from scratch, handwritten digits, distilled from the ResNet-18 of configs/resnet18_digits_cls.py.

Train the teacher: python tools/train.py configs/resnet18_digits_cls.py
Train: python tools/train.py configs/repnext_m0_digits_distill.py
Test: python tools/test.py configs/repnext_m0_digits_cls.py work_dirs/repnext_m0_digits_distill/epoch_20.pth
"""

_base_ = 'repnext_m0_digits_cls.py'

model = dict(
    _delete_=True,
    type='DistilledClassifier',
    student={{_base_.model}},
    teacher=dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=32),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=256),
    ),
    teacher_checkpoint='work_dirs/resnet18_digits_cls/epoch_10.pth',
    kind='hard',
    alpha=0.5,
)
