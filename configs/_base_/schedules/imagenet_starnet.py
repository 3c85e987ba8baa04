"""300 epochs of AdamW and 10 at the lowest rate, batch 2048, as the authors' StarNet recipe ran.

Another length: --cfg-options train_cfg.max_epochs=110; the cosine takes all but the last 10.
Norm statistics are averaged over the processes after every epoch (timm's dist_bn='reduce'), by the SyncBuffersHook in
each config.
"""

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=310, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.025),
    constructor='JoinedGroupsConstructor',
    paramwise_cfg=dict(flat_decay_mult=0.0),  # norms, biases, layer scales: no parameter of one dimension decays
)
param_scheduler = dict(type='TimmCosineLR', lr_min=1e-6, warmup_epochs=5, warmup_lr=1e-5, cooldown_epochs=10)

auto_scale_lr = dict(enable=False, base_batch_size=2048)
