"""What every classification config shares: scope, hooks, logging."""

default_scope = 'mmpretrain'
custom_imports = dict(imports=['repnext_mm'], allow_failed_imports=False)
custom_hooks = [dict(type='FuseBackboneHook')]  # fuses the backbone for every test, restores it afterwards

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # The authors report their best epoch.
    checkpoint=dict(
        type='AtomicCheckpointHook', interval=1, max_keep_ckpts=3, save_best='accuracy/top1', rule='greater'
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    seeding=dict(type='SeedStepsHook'),  # with SeededSampler: a resumed run draws what it would have drawn
    strict_load=dict(type='StrictLoadHook'),  # a checkpoint that does not fit is refused as a whole
    memory=dict(type='ReturnMemoryHook'),  # what a step has freed goes back to the system
    visualization=dict(type='VisualizationHook', enable=False),
)

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
