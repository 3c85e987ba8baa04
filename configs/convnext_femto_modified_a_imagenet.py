r"""ConvNeXt-femto with RepNeXt's downsampling, shortcut before the norm: ImageNet, 120 epochs
(batch 2048; 8 GPUs x 256 images), 5,252,728 parameters.

Train: bash tools/dist_train.sh configs/convnext_femto_modified_a_imagenet.py 8 --amp
Test: bash tools/dist_test.sh configs/convnext_femto_modified_a_imagenet.py \
    work_dirs/convnext_femto_modified_a_imagenet/epoch_120.pth 8
One GPU: python tools/train.py configs/convnext_femto_modified_a_imagenet.py --auto-scale-lr --amp
Expected: top-1 74.28 as reported by the authors: the best epoch (118) of the raw weights (74.278);
the last has 74.234.
"""

_base_ = [
    '_base_/models/convnext_femto.py',
    '_base_/datasets/imagenet_repvit.py',
    '_base_/schedules/imagenet_repvit.py',
    '_base_/default_runtime_cls.py',
]

model = dict(backbone=dict(type='ConvNeXtWithMixedDownsample', shortcut='before_norm'))
train_cfg = dict(max_epochs=120)
