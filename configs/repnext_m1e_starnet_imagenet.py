r"""RepNeXt-M1E, ImageNet, StarNet recipe, 300 epochs and 10 at the lowest rate (4 GPUs x 512 images).

The single-branch equivalent of RepNeXt-M1, trained from scratch in that form; the authors publish neither
its code nor its weights.
Train: bash tools/dist_train.sh configs/repnext_m1e_starnet_imagenet.py 4 --amp
Test: bash tools/dist_test.sh configs/repnext_m1e_starnet_imagenet.py \
    work_dirs/repnext_m1e_starnet_imagenet/epoch_310.pth 4
One GPU: python tools/train.py configs/repnext_m1e_starnet_imagenet.py --auto-scale-lr --amp
Expected: top-1 77.7 as reported by the authors: the best epoch (281) of the raw weights (77.692);
the last has 77.586.
Differences: the shipped script's defaults (weight decay 0.05, rate 1e-3, RandAugment 9, distillation) are not those of
the published runs, which are here. RandAugment interpolates bicubically here, at random there.
"""

_base_ = [
    '_base_/models/repnext_classifier.py',
    '_base_/datasets/imagenet_starnet.py',
    '_base_/schedules/imagenet_starnet.py',
    '_base_/default_runtime_cls.py',
]

model = dict(
    backbone=dict(arch='m1e'),
    head=dict(in_channels=384),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=0.2)]),
)

custom_hooks = [
    dict(type='FuseBackboneHook'),
    dict(type='SyncBuffersHook'),  # norm statistics: averaged over the processes after every epoch
]
