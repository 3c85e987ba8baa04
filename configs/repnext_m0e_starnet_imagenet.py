r"""RepNeXt-M0E, ImageNet, StarNet recipe, 300 epochs and 10 at the lowest rate (4 GPUs x 512 images).

The single-branch equivalent of RepNeXt-M0, trained from scratch in that form; the authors publish neither
its code nor its weights.
Train: bash tools/dist_train.sh configs/repnext_m0e_starnet_imagenet.py 4 --amp
Test: bash tools/dist_test.sh configs/repnext_m0e_starnet_imagenet.py \
    work_dirs/repnext_m0e_starnet_imagenet/epoch_310.pth 4
One GPU: python tools/train.py configs/repnext_m0e_starnet_imagenet.py --auto-scale-lr --amp
Expected: top-1 73.9 as reported by the authors: the best epoch (303) of the raw weights (73.874);
the last has 73.718.
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
    backbone=dict(arch='m0e'),
    head=dict(in_channels=320),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=0.2)]),
)

custom_hooks = [
    dict(type='FuseBackboneHook'),
    dict(type='SyncBuffersHook'),  # norm statistics: averaged over the processes after every epoch
]
