"""300 epochs of AdamW with adaptive clipping, batch 2048, as the authors' RepViT recipe ran.

Another length: --cfg-options train_cfg.max_epochs=100; the cosine follows.
Norm statistics are those of process 0, whose batches alone they saw, in a checkpoint of theirs and of ours. Theirs copy
them to the other processes in every step; ours validate with their own until a checkpoint is loaded. To average them
after every epoch, as the StarNet recipe does, add dict(type='SyncBuffersHook') to custom_hooks.
Averaged weights (EMA), which the authors keep but never report: add
dict(type='EMAHook', momentum=4e-5, update_buffers=True) to custom_hooks.
"""

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='AdaptiveClipOptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.025),
    clip_grad=dict(clip_factor=0.02),
    constructor='JoinedGroupsConstructor',
    paramwise_cfg=dict(flat_decay_mult=0.0),  # norms, biases, layer scales: no parameter of one dimension decays
)
# lag: their loop sets the rate after an epoch, for that epoch, so that the first rate serves twice.
param_scheduler = dict(type='TimmCosineLR', lr_min=1e-5, warmup_epochs=5, warmup_lr=1e-6, lag=1)

auto_scale_lr = dict(enable=False, base_batch_size=2048)
