r"""RepNeXt-u3-base, ImageNet, its authors' recipe, 450 epochs (8 GPUs x 256 images, two batches per step).

Train: bash tools/dist_train.sh configs/repnext_u3_base_imagenet.py 8 --amp
Test: bash tools/dist_test.sh configs/repnext_u3_base_imagenet.py \
    work_dirs/repnext_u3_base_imagenet/epoch_450.pth 8
One GPU: python tools/train.py configs/repnext_u3_base_imagenet.py --auto-scale-lr --amp
Expected: unknown; its authors publish neither accuracy nor weights.
Differences: their table tests at 256, their commands at 224; this tests at 256 (shorter side 292, center 256x256).
Their color jitter of 0.4 does nothing beside RandAugment (timm leaves it out then), so it is not here.
"""

_base_ = './repnext_u3_small_imagenet.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.3), head=dict(in_channels=1024))
