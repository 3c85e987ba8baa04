"""Every config parses, states the published recipe, and builds its model."""

import ast
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from repnext_mm.apis import checks

CONFIGS = Path(__file__).parents[2] / 'configs'
WIDTHS = {
    'm0': [40, 80, 160, 320],
    'm1': [48, 96, 192, 384],
    'm2': [56, 112, 224, 448],
    'm3': [64, 128, 256, 512],
    'm4': [64, 128, 256, 512],
    'm5': [80, 160, 320, 640],
}
RECIPES = [(task, arch) for task in ('mask_rcnn_repnext_{}_coco', 'semantic_fpn_repnext_{}_ade20k') for arch in WIDTHS]
REPORTED = {'m3': ('40.8', '40.6'), 'm4': ('42.9', '43.3'), 'm5': ('44.7', '45.0')}


def read(task, arch):
    path = CONFIGS / f'{task.format(arch)}.py'
    return path, Config.fromfile(path)


@pytest.mark.parametrize(('task', 'arch'), RECIPES)
def test_what_every_config_holds(task, arch):
    path, config = read(task, arch)
    assert config.model.backbone == dict(
        type='RepNeXt',
        arch=arch,
        norm_cfg=dict(type='BN'),
        norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint=f'pretrain/repnext_{arch}_distill_300e.pth'),
    )
    assert list(config.model.neck.in_channels) == WIDTHS[arch]
    checks.check_model(config.model)
    assert config.sync_bn == 'torch'
    assert config.custom_hooks == [dict(type='FuseBackboneHook')]
    assert 'repnext_mm' in config.custom_imports.imports
    assert config.auto_scale_lr == dict(enable=False, base_batch_size=16)
    assert config.optim_wrapper.type == 'OptimWrapper'  # fp32
    assert config.optim_wrapper.clip_grad is None
    header = ast.get_docstring(ast.parse(path.read_text()))
    assert f'tools/dist_train.sh configs/{path.name}' in header
    box, miou = REPORTED.get(arch, ('none reported', 'none reported'))
    assert f'Expected: {box if box == miou else ("box AP " + box if "coco" in task else "mIoU " + miou)}' in header


@pytest.mark.parametrize('arch', WIDTHS)
def test_coco_recipe(arch):
    _, config = read(RECIPES[0][0], arch)
    assert config.optim_wrapper.optimizer == dict(type='AdamW', lr=2e-4, weight_decay=0.1 if arch == 'm5' else 0.05)
    warm_up, steps = config.param_scheduler
    assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (1e-6, 500, False)
    assert (steps.milestones, steps.end, steps.gamma) == ([8, 11], 12, 0.1)
    assert config.train_cfg.max_epochs == 12
    assert config.train_dataloader.batch_size == 2
    assert config.train_dataloader.dataset.pipeline[2] == dict(type='Resize', scale=(1333, 800), keep_ratio=True)
    assert config.test_evaluator.metric == ['bbox', 'segm']
    assert (config.model.neck.out_channels, config.model.neck.num_outs) == (256, 5)
    assert config.tta_model.type == 'BoxTTAModel'


@pytest.mark.parametrize('arch', WIDTHS)
def test_ade20k_recipe(arch):
    _, config = read(RECIPES[-1][0], arch)
    assert config.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-4, weight_decay=0.05)
    assert config.param_scheduler == [dict(type='PolyLR', power=0.9, eta_min=1e-6, begin=0, end=80000, by_epoch=False)]
    assert config.train_cfg == dict(type='IterBasedTrainLoop', max_iters=80000, val_interval=8000)
    assert config.train_dataloader.batch_size == 4
    assert (config.model.neck.out_channels, config.model.decode_head.channels) == (256, 128)
    assert config.model.decode_head.num_classes == 150
    assert 'auxiliary_head' not in config.model
    assert config.model.data_preprocessor['size'] == config.crop_size == (512, 512)
    kinds = [step.type for step in config.test_dataloader.dataset.pipeline]
    assert kinds.index('Resize') + 1 == kinds.index('ResizeToMultiple') < kinds.index('LoadAnnotations')


@pytest.mark.parametrize(('task', 'arch'), RECIPES)
def test_models_build(task, arch):
    _, config = read(task, arch)
    init_default_scope(config.default_scope)
    with torch.device('meta'):
        model = MODELS.build(config.model)
    widths = [conv.conv.in_channels for conv in model.neck.lateral_convs]
    assert widths == WIDTHS[arch]


@pytest.mark.parametrize('size', [(300, 400), (417, 626), (2048, 512), (97, 1200)])
def test_test_images_are_rounded_up_as_the_authors_do(size):
    """Their AlignResize: fit into (2048, 512), keep the ratio, then ceil both sides to multiples of 32."""
    import numpy as np
    from mmengine.registry import TRANSFORMS

    _, config = read('semantic_fpn_repnext_{}_ade20k', 'm4')
    init_default_scope('mmseg')
    height, width = size
    scale = min(2048 / max(size), 512 / min(size))
    fitted = int(height * scale + 0.5), int(width * scale + 0.5)
    expected = tuple(-(-side // 32) * 32 for side in fitted)
    results = dict(img=np.zeros((*size, 3), np.uint8), img_shape=size, ori_shape=size)
    for step in config.test_dataloader.dataset.pipeline[1:3]:
        results = TRANSFORMS.build(step)(results)
    assert results['img'].shape[:2] == results['img_shape'] == expected
