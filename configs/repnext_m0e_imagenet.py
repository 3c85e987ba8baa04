r"""RepNeXt-M0E, ImageNet, RepViT recipe without distillation, 300 epochs (batch 2048; 8 GPUs x 256 images).

The single-branch equivalent of RepNeXt-M0, trained from scratch in that form; the authors publish neither
its code nor its weights.
Train: bash tools/dist_train.sh configs/repnext_m0e_imagenet.py 8 --amp
Test: bash tools/dist_test.sh configs/repnext_m0e_imagenet.py \
    work_dirs/repnext_m0e_imagenet/epoch_300.pth 8
One GPU: python tools/train.py configs/repnext_m0e_imagenet.py --auto-scale-lr --amp
Expected: top-1 72.18 as reported by the authors: the best epoch (293) of the raw weights (72.180);
the last has 71.902.
Other lengths: --cfg-options train_cfg.max_epochs=100 (reported: 69.69), 200 (71.57), 400 (72.53).
"""

_base_ = [
    '_base_/models/repnext_classifier.py',
    '_base_/datasets/imagenet_repvit.py',
    '_base_/schedules/imagenet_repvit.py',
    '_base_/default_runtime_cls.py',
]

model = dict(backbone=dict(arch='m0e'), head=dict(in_channels=320))
