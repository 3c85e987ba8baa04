r"""RepNeXt-M0E, ImageNet, StarNet recipe, distilled from RegNetY-160, 310 epochs (4 GPUs x 256 images).

The single-branch equivalent of RepNeXt-M0, trained from scratch in that form; the authors publish neither
its code nor its weights.
Train: bash tools/dist_train.sh configs/repnext_m0e_starnet_distill_imagenet.py 4 --amp
Test: bash tools/dist_test.sh configs/repnext_m0e_starnet_distill_imagenet.py \
    work_dirs/repnext_m0e_starnet_distill_imagenet/epoch_310.pth 4
One GPU: python tools/train.py configs/repnext_m0e_starnet_distill_imagenet.py --auto-scale-lr --amp
Expected: top-1 75.6 as reported by the authors: the best epoch (307) of the raw weights (75.562);
the last has 75.358.
Teacher: timm's regnety_160 with DeiT's weights, fetched before training starts, or --cfg-options
model.teacher_checkpoint=FILE; it is in no checkpoint, and testing does not load it.
Differences: half the batch at the same rate, 3e-3, as the authors ran it.
"""

_base_ = 'repnext_m0e_starnet_imagenet.py'

model = dict(
    _delete_=True,
    type='DistilledClassifier',
    student={{_base_.model}},
    teacher=dict(type='TimmClassifier', model_name='regnety_160'),
    teacher_checkpoint='https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth',
    kind='hard',
    alpha=0.5,
)

train_dataloader = dict(batch_size=256)
auto_scale_lr = dict(base_batch_size=1024)
