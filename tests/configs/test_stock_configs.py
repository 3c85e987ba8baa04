"""Every stock config family that takes a backbone of levels trains with RepNeXt and predicts the same fused."""

from __future__ import annotations

import importlib

import pytest

from tests.configs import stock_configs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings('ignore'),  # the stock models' own
]

ALWAYS = (
    ('mmdet', 'retinanet'),
    ('mmdet', 'mask_rcnn'),
    ('mmdet', 'soft_teacher'),
    ('mmseg', 'upernet'),
    ('mmpretrain', 'resnet'),
)
"""Families that must be among those that were tried."""


@pytest.mark.parametrize('package', stock_configs.PACKAGES)
def test_stock_configs(package):
    pytest.importorskip('mmcv.ops')
    pytest.importorskip(f'{package}.models')
    importlib.import_module(f'{package}.models')
    outcomes = {
        family: outcome
        for family, paths in stock_configs.families(package).items()
        if (outcome := stock_configs.try_family(package, paths)) is not None
    }
    assert {family for name, family in ALWAYS if name == package} <= outcomes.keys()
    ours = [one for one in outcomes.values() if not one.passed and not one.own_failure]
    assert not ours, stock_configs.table(ours)
