"""What every detection config shares: scope, hooks, logging."""

default_scope = 'mmdet'
custom_imports = dict(imports=['repnext_mm'], allow_failed_imports=False)
custom_hooks = [dict(type='FuseBackboneHook')]  # fuses the backbone for every test, restores it afterwards

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='AtomicCheckpointHook', interval=1, max_keep_ckpts=3, save_best='coco/bbox_mAP', rule='greater'
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    seeding=dict(type='SeedStepsHook'),  # with SeededSampler: a resumed run draws what it would have drawn
    strict_load=dict(type='StrictLoadHook'),  # a checkpoint that does not fit is refused as a whole
    memory=dict(type='ReturnMemoryHook'),  # what a step has freed goes back to the system
    visualization=dict(type='DetVisualizationHook'),
)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
sync_bn = 'torch'  # the published runs trained with live SyncBN; our tools drop it where there is no GPU

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
