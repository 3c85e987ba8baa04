"""450 epochs of AdamW, batch 4096, as RepNeXtU's recipe says.

What the recipe leaves to ConvNeXt's training script, whose it is: the rate rises from 0 over the warm-up, then follows
a cosine to 1e-6, and changes every iteration.
Another length: --cfg-options train_cfg.max_epochs=300 param_scheduler.1.end=300 param_scheduler.1.T_max=280
"""

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=450, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05),
    constructor='JoinedGroupsConstructor',
    paramwise_cfg=dict(flat_decay_mult=0.0),  # norms, biases, layer scales: no parameter of one dimension decays
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', eta_min=1e-6, T_max=430, by_epoch=True, begin=20, end=450, convert_to_iter_based=True
    ),
]

auto_scale_lr = dict(enable=False, base_batch_size=4096)
