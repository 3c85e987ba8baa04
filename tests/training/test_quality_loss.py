"""The loss that tells classes apart: its two terms by hand, reductions, gradients, and in a head of MMDetection."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch.nn import functional as F

from repnext_mm.errors import UserError
from repnext_mm.training import QualityFocalCrossEntropyLoss
from tests.tools.running import ROOT

mmdet = pytest.importorskip('mmdet')
PRED = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 4, 3, -1, 3, 4])  # 4 and -1 are background
QUALITY = torch.tensor([0.9, 0.0, 0.5, 0.0, 0.2, 0.0])
WEIGHT = torch.tensor([1.0, 1.0, 2.0, 1.0, 0.0, 1.0])


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')


def cross_entropies():
    return torch.tensor(
        [F.cross_entropy(PRED[i : i + 1], LABELS[i : i + 1]).item() if i in (0, 2, 4) else 0.0 for i in range(6)]
    )


@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
def test_it_is_the_focal_loss_and_the_cross_entropy_of_positives(reduction):
    ours = QualityFocalCrossEntropyLoss(class_weight=0.5, loss_weight=2.0, beta=1.0, reduction=reduction)
    focal = MODELS.build(dict(type='mmdet.QualityFocalLoss', beta=1.0, reduction=reduction, loss_weight=2.0))
    factor = 3.0 if reduction == 'mean' else None
    second = 2.0 * 0.5 * cross_entropies() * WEIGHT
    second = {'none': second, 'mean': second.sum() / 3.0, 'sum': second.sum()}[reduction]
    found = ours(PRED, (LABELS, QUALITY), WEIGHT, factor)
    torch.testing.assert_close(found, focal(PRED, (LABELS, QUALITY), WEIGHT, factor) + second)
    summed = ours(PRED, (LABELS, QUALITY), WEIGHT, reduction_override='sum')
    torch.testing.assert_close(summed, ours(PRED, (LABELS, QUALITY), WEIGHT, reduction_override='none').sum())


def test_background_alone_has_a_gradient_and_no_second_term():
    pred = PRED.clone().requires_grad_()
    background = (torch.full((6,), 4), torch.zeros(6))
    ours = QualityFocalCrossEntropyLoss()
    loss = ours(pred, background, avg_factor=1.0)
    torch.testing.assert_close(loss, ours.focal(PRED, background, avg_factor=1.0))
    loss.backward()
    assert pred.grad.abs().min() > 0


def test_a_weight_that_does_nothing_is_refused():
    with pytest.raises(UserError, match='class_weight=0: it must be positive; without it, use QualityFocalLoss'):
        QualityFocalCrossEntropyLoss(class_weight=0)


@pytest.mark.filterwarnings('ignore:.*meshgrid')
def test_the_digits_config_trains_with_it_and_tests_with_sigmoids():
    from mmengine.config import Config

    config = Config.fromfile(ROOT / 'configs/rtmdet_repnext_m0_digits.py')
    model = MODELS.build(config.model)
    assert isinstance(model.bbox_head.loss_cls, QualityFocalCrossEntropyLoss)
    assert model.bbox_head.cls_out_channels == 10
    assert model.bbox_head.use_sigmoid_cls
