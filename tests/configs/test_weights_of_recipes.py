"""How every recipe's weights start, and which of them decay: the published training scripts' rules, per parameter."""

from __future__ import annotations

import math

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from tests.configs import CONFIGS

pytest.importorskip('mmcv.ops')
pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')

TASKS = ('imagenet', 'cifar100', 'coco', 'ade20k')
RECIPES = sorted(path.stem for task in TASKS for path in CONFIGS.glob(f'*_{task}.py'))
DECAY = {'imagenet': 0.025, 'cifar100': 0.025, 'coco': 0.05, 'ade20k': 0.05}
OTHERS = {'mask_rcnn_repnext_m5_coco': 0.1}  # as logged
STARTS = [
    'repnext_m0_imagenet',
    'repnext_m0e_imagenet',
    'repnext_m0_cifar100',
    'repnext_m0_starnet_imagenet',
    'convnext_femto_baseline_imagenet',
    'convnext_femto_modified_a_imagenet',
    'convnext_femto_modified_b_imagenet',
    'repnext_u3_tiny_imagenet',
]


def read(name):
    config = Config.fromfile(CONFIGS / f'{name}.py')
    init_default_scope(config.default_scope)
    return config, config.model.get('student', config.model)


@pytest.mark.parametrize('name', RECIPES)
def test_decay(name):
    """timm's rule for the classifiers, and RTMDet's: none on a parameter of one dimension; for the rest: on all."""
    config, settings = read(name)
    expected = OTHERS.get(name, 0.05 if name.startswith('repnext_u') else DECAY[name.rpartition('_')[2]])
    spared = config.default_scope == 'mmpretrain' or name.startswith('rtmdet')
    with torch.device('cpu' if 'ConvNeXt' in settings.backbone.type else 'meta'):  # it reads its tensors
        model = MODELS.build(settings)
    groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    decay = {id(parameter): group['weight_decay'] for group in groups for parameter in group['params']}
    named = dict(model.named_parameters())
    assert decay.keys() == {id(parameter) for parameter in named.values()}
    wrong = [
        parameter
        for parameter, value in named.items()
        if decay[id(value)] != (0 if spared and (value.dim() <= 1 or parameter.endswith('.bias')) else expected)
    ]
    assert not wrong, f'{len(wrong)} of {len(named)} parameters: {wrong[:3]}'


def test_layer_scales_are_among_the_spared():
    _, settings = read('convnext_femto_modified_b_imagenet')
    scales = [value for name, value in MODELS.build(settings).named_parameters() if name.endswith('gamma')]
    assert [scale.dim() for scale in scales] == [1] * 12


@pytest.mark.parametrize('name', STARTS)
def test_weights_start_as_published(name):
    """Heads (and all of ConvNeXt and RepNeXtU): truncated normal of 0.02; RepNeXt's convolutions: torch's default."""
    torch.manual_seed(0)
    _, settings = read(name)
    model = MODELS.build(settings)
    model.init_weights()
    own = name.startswith('repnext_m')
    for layer, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            default = own and isinstance(module, nn.Conv2d)
            size = module.weight.abs()
            # medians: torch's truncated normal gives one weight in millions the bound itself, 100 deviations away
            median = 0.5 / math.sqrt(module.weight[0].numel()) if default else 0.6745 * 0.02
            assert size.median().item() == pytest.approx(median, rel=8 / math.sqrt(size.numel())), layer
            assert size.max() <= (2 * median * (1 + 1e-6) if default else 2), layer
            assert default or module.bias is None or not module.bias.any(), layer
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d | nn.LayerNorm):
            assert (module.weight == 1).all(), layer
            assert not module.bias.any(), layer
