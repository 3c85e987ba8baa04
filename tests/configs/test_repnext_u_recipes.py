"""RepNeXtU's configs state the published recipe, build the published models, and step as ConvNeXt's script does."""

from __future__ import annotations

import ast
import math
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, PARAM_SCHEDULERS, TRANSFORMS, init_default_scope

from repnext_mm.models import UNIT_ARCHITECTURES
from repnext_mm.reparam.fuse import count_parameters
from tests.configs import CONFIGS
from tests.models.test_repnext_u import PUBLISHED

pytest.importorskip('mmpretrain')

ARCHS = {'tiny': (0.1, 512, 1), 'small': (0.2, 256, 2), 'base': (0.3, 256, 2)}  # drop path, per GPU, batches per step


def read(arch: str) -> Config:
    return Config.fromfile(CONFIGS / f'repnext_u3_{arch}_imagenet.py')


@pytest.mark.parametrize('arch', ARCHS)
def test_header(arch):
    name = f'repnext_u3_{arch}_imagenet'
    header = ast.get_docstring(ast.parse((CONFIGS / f'{name}.py').read_text()))
    assert 'Expected: unknown; its authors publish neither accuracy nor weights' in header
    assert 'this tests at 256 (shorter side 292, center 256x256)' in header
    assert re.search(rf'\(8 GPUs x {ARCHS[arch][1]} images', header)
    assert f'tools/dist_train.sh configs/{name}.py 8 --amp' in header
    assert f'work_dirs/{name}/epoch_450.pth' in header


@pytest.mark.parametrize('arch', ARCHS)
def test_what_every_config_holds(arch):
    config, (drop_path, batch, steps) = read(arch), ARCHS[arch]
    backbone = config.model.backbone
    assert (backbone.type, backbone.arch, backbone.unit, backbone.drop_path_rate) == ('RepNeXtU', arch, 'u3', drop_path)
    assert config.model.head.in_channels == UNIT_ARCHITECTURES[arch].dims[3]
    assert config.model.head.loss == dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
    assert [(mix.type, mix.alpha) for mix in config.model.train_cfg.augments] == [('Mixup', 0.8), ('CutMix', 1.0)]
    assert config.optim_wrapper.optimizer == dict(type='AdamW', lr=4e-3, weight_decay=0.05)
    assert (config.optim_wrapper.type, config.optim_wrapper.get('clip_grad')) == ('OptimWrapper', None)
    assert config.train_cfg.max_epochs == 450
    assert config.train_dataloader.batch_size == batch
    assert config.optim_wrapper.get('accumulative_counts', 1) == steps
    assert 8 * batch * steps == 4096
    assert config.auto_scale_lr == dict(enable=False, base_batch_size=8 * batch)  # mmengine knows no accumulation
    assert config.train_dataloader.sampler.sampler == dict(type='DefaultSampler', shuffle=True)
    ema = next(hook for hook in config.custom_hooks if hook.type == 'EMAHook')
    assert (1 - ema.momentum, ema.update_buffers, ema.get('interval', 1)) == (0.9999, True, steps)
    train = {step.type: step for step in config.train_dataloader.dataset.pipeline}
    assert train['RandomResizedCrop'].scale == 224
    assert (train['RandAugment'].magnitude_level, train['RandAugment'].magnitude_std) == (9, 0.5)
    assert (train['RandAugment'].policies, train['RandomErasing'].erase_prob) == ('timm_increasing', 0.25)
    assert 'ColorJitter' not in train


@pytest.mark.parametrize('arch', ARCHS)
def test_models_build_and_count(arch):
    init_default_scope('mmpretrain')
    with torch.device('meta'):
        model = MODELS.build(read(arch).model)
    dims, depths = UNIT_ARCHITECTURES[arch].dims, UNIT_ARCHITECTURES[arch].depths
    never_run = sum(50 * width * depth for width, depth in zip(dims, depths, strict=True))
    assert count_parameters(model) + never_run == PUBLISHED[arch][0]


def test_timm_leaves_color_jitter_out():
    """What the header says about it."""
    create_transform = pytest.importorskip('timm.data').create_transform
    steps = create_transform(224, is_training=True, color_jitter=0.4, auto_augment='rand-m9-mstd0.5-inc1').transforms
    assert 'RandAugment' in {type(step).__name__ for step in steps}
    assert 'ColorJitter' not in {type(step).__name__ for step in steps}


@pytest.mark.parametrize('loader', ['val_dataloader', 'test_dataloader'])
def test_tested_at_256(loader):
    init_default_scope('mmpretrain')
    image = np.random.default_rng(0).integers(0, 255, (300, 500, 3), dtype=np.uint8)
    results = dict(img=image, img_shape=image.shape[:2])
    for step in read('tiny')[loader].dataset.pipeline:
        if step.type in ('ResizeEdge', 'CenterCrop'):
            assert step.get('interpolation', 'bicubic') == 'bicubic'
            results = TRANSFORMS.build(step)(results)
            assert min(results['img'].shape[:2]) == (292 if step.type == 'ResizeEdge' else 256)
    assert results['img'].shape == (256, 256, 3)


def test_rates_and_decay_are_those_of_convnexts_script():
    """Rising from 0 for 20 epochs, then one cosine to 1e-6 over the other 430, changing every iteration."""
    init_default_scope('mmpretrain')
    config, per_epoch = read('tiny'), 3
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    assert sorted(group['weight_decay'] for group in wrapper.optimizer.param_groups) == [0, 0.05]
    schedulers = []
    for settings in config.param_scheduler:
        settings = dict(settings)
        assert settings.pop('convert_to_iter_based')
        kind = PARAM_SCHEDULERS.get(settings.pop('type'))
        schedulers.append(kind.build_iter_from_epoch(wrapper.optimizer, **settings, epoch_length=per_epoch))
    warm_up, total = 20 * per_epoch, 450 * per_epoch
    for iteration in range(total):
        rate = wrapper.optimizer.param_groups[0]['lr']
        if iteration < warm_up:
            expected = 4e-3 * iteration / (warm_up - 1)
        else:
            done = (iteration - warm_up) / (total - warm_up)
            expected = 1e-6 + (4e-3 - 1e-6) * (1 + math.cos(math.pi * done)) / 2
        assert rate == pytest.approx(expected, abs=4e-3 * 2e-3), iteration
        wrapper.optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


def test_the_average_follows_every_step_once():
    """With two batches per step, an average of every second iteration sees each step's weights."""
    init_default_scope('mmpretrain')
    settings = next(hook for hook in read('small').custom_hooks if hook.type == 'EMAHook')
    hook = HOOKS.build(settings)
    model = torch.nn.Linear(1, 1, bias=False)
    average = MODELS.build(hook.ema_cfg, default_args=dict(model=model))
    expected = None
    for iteration in range(9):
        if iteration % 2 == 1:  # what two batches add up to is stepped after the second
            model.weight.data.fill_(float(iteration))
        average.update_parameters(model)
        if iteration % 2 == 0:
            weight = model.weight.item()
            expected = weight if expected is None else expected * 0.9999 + weight * 1e-4
    assert average.module.weight.item() == pytest.approx(expected)
