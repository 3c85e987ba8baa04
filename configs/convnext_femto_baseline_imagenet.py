r"""ConvNeXt-femto with its own downsampling: ImageNet, 120 epochs
(batch 2048; 8 GPUs x 256 images), 5,217,784 parameters.

Train: bash tools/dist_train.sh configs/convnext_femto_baseline_imagenet.py 8 --amp
Test: bash tools/dist_test.sh configs/convnext_femto_baseline_imagenet.py \
    work_dirs/convnext_femto_baseline_imagenet/epoch_120.pth 8
One GPU: python tools/train.py configs/convnext_femto_baseline_imagenet.py --auto-scale-lr --amp
Expected: top-1 72.37 as reported by the authors: the best epoch (116) of the raw weights (72.368);
the last has 72.352.
"""

_base_ = [
    '_base_/models/convnext_femto.py',
    '_base_/datasets/imagenet_repvit.py',
    '_base_/schedules/imagenet_repvit.py',
    '_base_/default_runtime_cls.py',
]

train_cfg = dict(max_epochs=120)
