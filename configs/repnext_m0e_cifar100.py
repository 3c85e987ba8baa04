r"""RepNeXt-M0E, CIFAR-100 at 224x224, RepViT recipe without distillation, 300 epochs (4 GPUs x 512 images).

The single-branch equivalent of RepNeXt-M0, trained from scratch in that form; the authors publish neither
its code nor its weights.
Train: bash tools/dist_train.sh configs/repnext_m0e_cifar100.py 4 --amp
Test: bash tools/dist_test.sh configs/repnext_m0e_cifar100.py \
    work_dirs/repnext_m0e_cifar100/epoch_300.pth 4
One GPU: python tools/train.py configs/repnext_m0e_cifar100.py --auto-scale-lr --amp
Expected: top-1 81.89 as reported by the authors: the best epoch (287) of the raw weights;
the last has 81.46.
Other lengths: --cfg-options train_cfg.max_epochs=100 (reported: 73.56), 200 (79.79), 400 (82.07).
"""

_base_ = [
    '_base_/models/repnext_classifier.py',
    '_base_/datasets/cifar100.py',
    '_base_/schedules/imagenet_repvit.py',
    '_base_/default_runtime_cls.py',
]

model = dict(
    data_preprocessor=dict(num_classes=100),
    backbone=dict(arch='m0e'),
    head=dict(in_channels=320, num_classes=100),
)
