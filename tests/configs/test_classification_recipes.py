"""Every classification config parses, states the published recipe, and builds its model."""

from __future__ import annotations

import ast
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATA_SAMPLERS, MODELS, TRANSFORMS, init_default_scope

from repnext_mm.models import resolve_arch
from repnext_mm.reparam.fuse import count_parameters
from tests.configs import CONFIGS
from tests.models.test_repnext import PUBLISHED

pytest.importorskip('mmpretrain')

PLAIN = ['m0', 'm1', 'm2', 'm3', 'm4', 'm5', 'm0e']
STARNET = ['m0', 'm0e', 'm1', 'm1e', 'm2', 'm2e']
NAMES = (
    [f'repnext_{arch}_imagenet' for arch in PLAIN]
    + [f'repnext_{arch}_distill_imagenet' for arch in PLAIN[:-1]]
    + [f'repnext_{arch}_starnet{kind}_imagenet' for arch in STARNET for kind in ('', '_distill')]
    + ['repnext_m0_cifar100', 'repnext_m0e_cifar100']
)
ABLATION = [f'convnext_femto_{kind}_imagenet' for kind in ('baseline', 'modified_a', 'modified_b')]
TOP1 = {  # facts B2, B3, B4
    'repnext_m0_imagenet': '72.6',
    'repnext_m1_imagenet': '77.5',
    'repnext_m2_imagenet': '78.9',
    'repnext_m3_imagenet': '79.4',
    'repnext_m4_imagenet': '81.2',
    'repnext_m5_imagenet': '82.4',
    'repnext_m0_distill_imagenet': '74.2',
    'repnext_m1_distill_imagenet': '78.8',
    'repnext_m2_distill_imagenet': '80.1',
    'repnext_m3_distill_imagenet': '80.7',
    'repnext_m4_distill_imagenet': '82.3',
    'repnext_m5_distill_imagenet': '83.3',
    'repnext_m0_starnet_imagenet': '73.8',
    'repnext_m0e_starnet_imagenet': '73.9',
    'repnext_m1_starnet_imagenet': '77.9',
    'repnext_m1e_starnet_imagenet': '77.7',
    'repnext_m2_starnet_imagenet': '78.8',
    'repnext_m2e_starnet_imagenet': '78.8',
    'repnext_m0_starnet_distill_imagenet': '75.4',
    'repnext_m0e_starnet_distill_imagenet': '75.6',
    'repnext_m1_starnet_distill_imagenet': '79.7',
    'repnext_m1e_starnet_distill_imagenet': '79.5',
    'repnext_m2_starnet_distill_imagenet': '80.6',
    'repnext_m2e_starnet_distill_imagenet': '80.6',
    'repnext_m0_cifar100': '81.73',
    'repnext_m0e_cifar100': '81.89',
    'repnext_m0e_imagenet': '72.18',
    'convnext_femto_baseline_imagenet': '72.37',
    'convnext_femto_modified_a_imagenet': '74.28',
    'convnext_femto_modified_b_imagenet': '74.19',
}


def read(name):
    return Config.fromfile(CONFIGS / f'{name}.py')


def student_of(config):
    return config.model.student if config.model.type == 'DistilledClassifier' else config.model


def test_every_recipe_is_listed_here():
    on_disk = {path.stem for task in ('imagenet', 'cifar100') for path in CONFIGS.glob(f'*_{task}.py')}
    on_disk = {name for name in on_disk if not name.startswith('repnext_u')}  # tests/configs/test_repnext_u_recipes.py
    assert on_disk == {*NAMES, *ABLATION} == set(TOP1)


@pytest.mark.parametrize('name', [*NAMES, *ABLATION])
def test_header(name):
    header = ast.get_docstring(ast.parse((CONFIGS / f'{name}.py').read_text()))
    config = read(name)
    assert f'Expected: top-1 {TOP1[name]} as reported by the authors' in header
    processes, batch = re.search(r'\((?:batch \d+; )?(\d) GPUs x (\d+) images\)', header).groups()
    assert config.train_dataloader.batch_size == int(batch)
    assert config.auto_scale_lr == dict(enable=False, base_batch_size=int(processes) * int(batch))
    assert f'tools/dist_train.sh configs/{name}.py {processes}' in header
    assert f'work_dirs/{name}/epoch_{config.train_cfg.max_epochs}.pth' in header


@pytest.mark.parametrize('name', NAMES)
def test_what_every_config_holds(name):
    config = read(name)
    model = student_of(config)
    arch = name.split('_')[1]
    classes = 100 if 'cifar' in name else 1000
    assert (model.backbone.arch, model.head.num_classes) == (arch, classes)
    assert model.head.in_channels == resolve_arch(arch).embed_dims[3]
    assert model.data_preprocessor.num_classes == classes
    assert model.head.loss == dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
    starnet = 'starnet' in name
    assert [(mix.type, mix.alpha) for mix in model.train_cfg.augments] == [
        ('Mixup', 0.8),
        ('CutMix', 0.2 if starnet else 1.0),
    ]
    assert config.optim_wrapper.optimizer.weight_decay == 0.025
    lr = 3e-3 if starnet else 2e-3 if 'distill' in name else 4e-3
    assert config.optim_wrapper.optimizer.lr == lr
    assert config.optim_wrapper.type == ('OptimWrapper' if starnet else 'AdaptiveClipOptimWrapper')
    assert config.optim_wrapper.get('clip_grad') == (None if starnet else dict(clip_factor=0.02))
    assert config.train_cfg.max_epochs == (310 if starnet else 300)
    assert config.default_hooks.checkpoint.save_best == 'accuracy/top1'
    hooks = ['FuseBackboneHook', 'SyncBuffersHook'] if starnet else ['FuseBackboneHook']
    assert [hook.type for hook in config.custom_hooks] == hooks
    steps = {step.type: step for step in config.train_dataloader.dataset.pipeline}
    assert steps['RandAugment'].magnitude_level == (1 if starnet else 9)
    assert steps['RandomErasing'].erase_prob == 0.25
    if 'distill' in name:
        assert (config.model.kind, config.model.alpha) == ('hard', 0.5)
        assert config.model.teacher == dict(type='TimmClassifier', model_name='regnety_160')


@pytest.mark.parametrize('name', NAMES)
def test_models_build_and_count(name):
    init_default_scope('mmpretrain')
    config = read(name)
    with torch.device('meta'):
        model = MODELS.build(student_of(config))
    if 'cifar' not in name:
        assert count_parameters(model) == PUBLISHED[name.split('_')[1]][0]


@pytest.mark.parametrize(
    ('name', 'images', 'processes', 'iterations'),
    [
        ('repnext_m1_imagenet', 1_281_167, 8, 625),
        ('repnext_m0_cifar100', 50_000, 4, 24),
        ('repnext_m1_distill_imagenet', 1_281_167, 8, 1251),
    ],
)
def test_iterations_of_an_epoch(monkeypatch, name, images, processes, iterations):
    from mmpretrain.datasets.samplers import repeat_aug

    monkeypatch.setattr(repeat_aug, 'get_dist_info', lambda: (1, processes))
    loader = read(name).train_dataloader
    init_default_scope('mmpretrain')
    sampler = DATA_SAMPLERS.build(loader.sampler.sampler, default_args=dict(dataset=range(images), seed=0))
    assert loader.drop_last
    assert len(sampler) // loader.batch_size == iterations
    assert max(np.bincount(list(sampler)[:3000])) <= 3


@pytest.mark.parametrize(
    ('name', 'edge'),
    [
        ('repnext_m1_imagenet', 256),
        ('repnext_m1_starnet_imagenet', 248),
        ('repnext_m0_cifar100', 256),
    ],
)
def test_sizes_when_tested(name, edge):
    init_default_scope('mmpretrain')
    resize, crop = read(name).test_dataloader.dataset.pipeline[-3:-1]
    assert (resize.type, crop.type) == ('ResizeEdge', 'CenterCrop')
    assert (resize.interpolation, resize.backend) == ('bicubic', 'pillow')
    image = np.random.default_rng(0).integers(0, 255, (300, 500, 3), dtype=np.uint8)
    resized = TRANSFORMS.build(resize)(dict(img=image, img_shape=image.shape[:2]))
    assert min(resized['img'].shape[:2]) == edge
    assert TRANSFORMS.build(crop)(resized)['img'].shape == (224, 224, 3)


def test_starnet_takes_either_interpolation():
    choice = read('repnext_m0_starnet_imagenet').train_dataloader.dataset.pipeline[1]
    assert choice.type == 'RandomChoice'
    assert [steps[0].interpolation for steps in choice.transforms] == ['bilinear', 'bicubic']


def test_labels_are_smoothed_as_timm_does():
    """timm's mixup writes smoothed targets; MMPretrain's loss smooths mixed ones: the same numbers."""
    from timm.data.mixup import mixup_target

    init_default_scope('mmpretrain')
    loss = MODELS.build(dict(read('repnext_m0_imagenet').model.head.loss))
    loss.num_classes = 10
    labels = torch.tensor([1, 4, 7, 2])
    one_hot = torch.eye(10)[labels]
    mixed = 0.3 * one_hot + 0.7 * one_hot.flip(0)
    expected = mixup_target(labels, 10, lam=0.3, smoothing=0.1)
    torch.testing.assert_close(loss.smooth_label(mixed.clone()), expected)
