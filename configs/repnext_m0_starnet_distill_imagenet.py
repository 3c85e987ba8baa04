r"""RepNeXt-M0, ImageNet, StarNet recipe, distilled from RegNetY-160, 310 epochs (4 GPUs x 256 images).

Train: bash tools/dist_train.sh configs/repnext_m0_starnet_distill_imagenet.py 4 --amp
Test: bash tools/dist_test.sh configs/repnext_m0_starnet_distill_imagenet.py \
    work_dirs/repnext_m0_starnet_distill_imagenet/epoch_310.pth 4
One GPU: python tools/train.py configs/repnext_m0_starnet_distill_imagenet.py --auto-scale-lr --amp
Authors' weights: python tools/test.py configs/repnext_m0_starnet_distill_imagenet.py \
    repnext_m0_sz224_4xbs256_ep300_distill.pth.tar
Expected: top-1 75.4 as reported by the authors: the best epoch (307) of the raw weights (75.426);
the last has 75.178.
Teacher: timm's regnety_160 with DeiT's weights, fetched before training starts, or --cfg-options
model.teacher_checkpoint=FILE; it is in no checkpoint, and testing does not load it.
Differences: half the batch at the same rate, 3e-3, as the authors ran it.
"""

_base_ = 'repnext_m0_starnet_imagenet.py'

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
