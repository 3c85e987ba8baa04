"""Parameters and MACs against the authors' published counts and an independent count of them."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from repnext_mm.lab.bench.complexity import (
    TRAIN_FORMS,
    build_without_data,
    count_macs,
    model_complexity,
    repnext_complexity,
)
from repnext_mm.models import FORMS
from tests.conftest import fast
from tests.tools.running import ROOT

# ImageNet classifier: parameters in train form (the authors' logs), with their norms kept, with every norm folded;
# parameters of the backbone; MACs branch by branch and fused at 224x224; giga-MACs of the fused backbone's net at 512
TABLE = {
    'm0': (2_716_480, 2_333_200, 2_328_080, 2_073_200, 402_980_960, 387_537_600, 2.023),
    'm1': (5_323_316, 4_829_560, 4_820_056, 4_551_780, 847_930_176, 821_871_744, 4.292),
    'm2': (7_049_082, 6_473_200, 6_462_112, 6_149_290, 1_141_686_560, 1_111_285_056, 5.804),
    'm3': (8_466_560, 7_818_920, 7_807_272, 7_438_512, 1_372_622_592, 1_339_483_648, 6.996),
    'm4': (14_080_480, 13_342_120, 13_321_512, 13_052_432, 2_342_625_024, 2_289_415_680, 11.959),
    'm5': (22_708_860, 21_737_560, 21_707_000, 21_424_300, 4_631_505_600, 4_543_920_000, 23.737),
}
NORMS_KEPT = {'m0': 17, 'm1': 26, 'm2': 26, 'm3': 24, 'm4': 42, 'm5': 54}


@pytest.mark.parametrize('arch', fast(TABLE, 'm0'))
def test_published_counts(arch):
    train, kept, folded, backbone, macs_train, macs_fused, giga_macs_512 = TABLE[arch]
    found = repnext_complexity(arch, forms=('default', 'keep_norms'))
    whole = {form: parts['classifier'] for form, parts in found.items()}
    alone = {form: parts['backbone'] for form, parts in found.items()}
    assert whole['train'].parameters == whole['branches'].parameters == train
    assert whole['keep_norms'].parameters == kept
    assert whole['default'].parameters == folded
    assert alone['train'].parameters == backbone
    assert whole['branches'].macs == macs_train
    assert whole['default'].macs == whole['keep_norms'].macs == macs_fused
    assert whole['keep_norms'].norms == NORMS_KEPT[arch]
    assert whole['default'].norms == 0
    assert alone['train'].macs == alone['default'].macs  # merged while it trains, it does the fused one's arithmetic
    larger = repnext_complexity(arch, shape=(512, 512), forms=['default'])['default']['classifier']
    assert round(larger.macs / 1e9, 3) == giga_macs_512


SINGLE_BRANCH = {
    'm0e': (2_876_420, 2_546_400, 0.4578),
    'm1e': (5_655_944, 5_255_080, 0.9537),
    'm2e': (7_437_148, 6_969_640, 1.2651),
}


@pytest.mark.parametrize('arch', fast(SINGLE_BRANCH, 'm0e'))
def test_published_counts_of_the_single_branch_variants(arch):
    train, kept, giga_macs = SINGLE_BRANCH[arch]
    found = repnext_complexity(arch, forms=('default', 'keep_norms'))
    assert found['train']['classifier'].parameters == train
    assert found['keep_norms']['classifier'].parameters == kept
    assert round(found['default']['classifier'].macs / 1e9, 4) == giga_macs


def test_every_form():
    found = repnext_complexity('m0')
    forms = [form for form in FORMS if form != 'balanced']  # which runs what the default runs
    assert list(found) == [*TRAIN_FORMS, *forms]
    assert all(found[form]['backbone'].norms == (17 if form == 'keep_norms' else 0) for form in forms)
    assert all(found[form]['backbone'].macs >= found['default']['backbone'].macs for form in forms)


@pytest.mark.parametrize(
    ('model', 'forms'),
    [
        (dict(type='RepNeXt', arch='m0e'), ['train', 'default', 'keep_norms']),
        (dict(type='RepNeXt', arch='m0e', deploy=True), ['train']),
        (dict(type='RepNeXt', arch='m0', deploy=True), ['train', 'half', 'three_quarters', 'dense']),
        (dict(type='RepNeXtU'), ['branches', 'train', 'default']),
        (dict(type='ResNet', depth=18), ['train', 'default']),
    ],
    ids=['one branch', 'fused', 'fused, of several', 'units', 'ResNet'],
)
def test_no_rows_of_forms_that_a_model_does_not_have(model, forms):
    found = model_complexity(Config({'default_scope': 'mmpretrain', 'model': model}), shape=(64, 64))
    assert list(found) == forms


def test_another_number_of_classes():
    found = repnext_complexity('m0', num_classes=100, forms=['keep_norms'])
    assert found['train']['classifier'].parameters == 2_138_680
    assert found['keep_norms']['classifier'].parameters == 2_044_300


def test_macs_of_layers():
    layers = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ConvTranspose2d(8, 2, 2, stride=2), nn.Flatten(), nn.Linear(200, 3)
    ).to('meta')
    macs = count_macs(lambda: layers(torch.empty(1, 4, 5, 5, device='meta')))
    assert macs == 25 * 8 * 2 * 9 + 25 * 8 * 2 * 4 + 200 * 3


def test_mask_rcnn_part_by_part():
    config = Config.fromfile(ROOT / 'configs/mask_rcnn_repnext_m0_coco.py')
    found = model_complexity(config, shape=(64, 96), forms=['default'])
    parts = found['default']
    assert list(parts) == ['backbone', 'neck', 'rpn_head', 'bbox_head', 'mask_head', 'total']
    assert parts['backbone'] == repnext_complexity('m0', shape=(64, 96), forms=['default'])['default']['backbone']
    first, second, classes, boxes = 256 * 49 * 1024, 1024 * 1024, 1024 * 81, 1024 * 320
    assert parts['bbox_head'].macs == 1000 * (first + second + classes + boxes)
    assert parts['mask_head'].macs == 100 * (196 * 4 * 9 * 256 * 256 + 196 * 256 * 256 * 4 + 784 * 256 * 80)
    rpn = sum(h * w for h, w in [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]) * (9 * 256 * 256 + 256 * 3 + 256 * 12)
    assert parts['rpn_head'].macs == rpn
    assert parts['total'].macs == sum(value.macs for name, value in parts.items() if name != 'total')
    assert found['branches']['total'].macs > found['train']['total'].macs == parts['total'].macs
    assert found['train']['total'].parameters - parts['total'].parameters == 2_073_200 - 2_007_080


@pytest.mark.filterwarnings('ignore:Default ..avg_non_ignore')
def test_semantic_fpn_part_by_part():
    config = Config.fromfile(ROOT / 'configs/semantic_fpn_repnext_m0_ade20k.py')
    parts = model_complexity(config, shape=(64, 64), forms=['default'])['default']
    assert list(parts) == ['backbone', 'neck', 'decode_head', 'total']
    first = 9 * 256 * 128 * (16**2 + 8**2 + 4**2 + 2**2)  # FPNHead: a 3x3 per level, then more while upsampling
    more = 9 * 128 * 128 * (8**2 + 4**2 + 8**2)
    assert parts['decode_head'].macs == first + more + 16**2 * 128 * 150


def test_bare_backbone_config():
    config = Config({'model': {'type': 'RepNeXt', 'arch': 'm0', 'in_channels': 1}})
    found = model_complexity(config, shape=(64, 64), forms=['default'])
    assert list(found['default']) == ['backbone', 'total']
    three_channels = repnext_complexity('m0', shape=(64, 64), forms=['default'])['default']['backbone'].macs
    assert three_channels - found['default']['backbone'].macs == 2 * 32 * 32 * 9 * 20  # of the first convolution


def test_errors():
    with pytest.raises(ValueError, match='num_classes=0.*at least one class'):
        repnext_complexity('m0', num_classes=0)
    with pytest.raises(ValueError, match='31x64 pixels'):
        repnext_complexity('m0', shape=(31, 64))
    with pytest.raises(ValueError, match="unknown form 'flat'"):
        repnext_complexity('m0', forms=['flat'])


@pytest.mark.parametrize(
    ('name', 'parameters'), [('baseline', 5_217_784), ('modified_a', 5_252_728), ('modified_b', 5_252_728)]
)
def test_models_that_read_values_while_they_are_built(name, parameters):
    """MMPretrain's ConvNeXt cannot be built without data: its counts are those of a network with data."""
    config = Config.fromfile(ROOT / f'configs/convnext_femto_{name}_imagenet.py')
    found = model_complexity(config, shape=(64, 96), forms=['default'])
    assert {parts['total'].parameters for parts in found.values()} == {parameters}
    model = MODELS.build(config.model).eval()
    macs = count_macs(lambda: model(torch.zeros(1, 3, 64, 96), mode='tensor'))
    assert {parts['total'].macs for parts in found.values()} == {macs}
    assert build_without_data(config.model).head.fc.weight.is_meta


def test_what_cannot_be_built_at_all_is_tried_once():
    tried = []

    class Broken(nn.Module):
        def __init__(self):
            tried.append(self)
            raise RuntimeError('no room')

    with pytest.raises(RuntimeError, match='no room'):
        build_without_data({'type': Broken})
    assert len(tried) == 1
