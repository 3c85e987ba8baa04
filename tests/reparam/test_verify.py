"""The verifier sees every difference and is not fooled by NaN."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from repnext_mm.reparam import relative_error
from repnext_mm.reparam.verify import all_within, distances, randomize, worst


class Levels(nn.Module):
    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x):
        return tuple(x * factor for factor in self.factors)


PROBE = torch.tensor([[1.0, -2.0]])


def test_error_per_level():
    errors = relative_error(Levels(1.0, 1.5), Levels(1.0, 1.0), PROBE)
    assert errors == (0.0, 0.5)
    assert all_within(errors, 0.5)
    assert not all_within(errors, 0.4)


@pytest.mark.parametrize(
    'pair',
    [(float('nan'), 1.0), (1.0, float('nan')), (float('inf'), 1.0), (1.0, float('inf')), (float('inf'), float('inf'))],
    ids=str,
)
def test_nan_and_inf_never_pass(pair):
    errors = relative_error(Levels(1.0, pair[0]), Levels(1.0, pair[1]), PROBE)
    assert not all_within(errors, 1e30)


def test_no_levels_never_pass():
    assert not all_within((), 1.0)


def test_zero_reference_gives_the_absolute_error():
    assert relative_error(Levels(0.25), Levels(0.0), PROBE) == (0.5,)


def test_the_worst_of_several_levels_is_nan_where_one_is():
    ones = torch.ones(2)
    assert worst(distances([ones, 3 * ones], [ones, 2 * ones])) == 0.5
    for value in (float('nan'), float('inf')):
        assert math.isnan(worst(distances([value * ones, 3 * ones], [ones, ones])))
    with pytest.raises(ValueError, match=r'outputs of shapes \[\(2,\)\] cannot be compared with \[\(1,\)\]'):
        distances([ones], [ones[:1]])
    with pytest.raises(ValueError, match='empty outputs'):
        distances([ones[:0]], [ones[:0]])


def test_randomized_numbers_hide_nothing():
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False, track_running_stats=False)]
    models = [nn.Sequential(*copy.deepcopy(layers)) for _ in range(3)]
    for model in models:
        nn.init.zeros_(model[0].bias)
    first, second, other = (randomize(model, seed=seed) for model, seed in zip(models, (0, 0, 1), strict=True))
    assert all(map(torch.equal, first[1].state_dict().values(), second[1].state_dict().values()))
    assert not torch.equal(first[1].weight, other[1].weight)
    for tensor in (first[0].bias, first[1].weight, first[1].bias, first[1].running_mean, first[1].running_var):
        assert tensor.std() > 0
    assert all(parameter.requires_grad for parameter in first.parameters())


def test_an_image_keeps_activations_in_range():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).eval()
    image = 1e4 * torch.randn(64, 3)
    with torch.no_grad():
        assert randomize(model, image=image)(image).abs().max() < 20


def test_shapes_must_agree():
    with pytest.raises(ValueError, match='agree in levels'):
        relative_error(Levels(1.0), Levels(1.0, 1.0), PROBE)


def test_outputs_may_be_nested_but_must_be_tensors():
    class Named(nn.Module):
        def forward(self, x):
            return {'a': [x], 'b': x}

    class Counting(nn.Module):
        def forward(self, x):
            return len(x)

    assert relative_error(Named(), Named(), PROBE) == (0.0, 0.0)
    with pytest.raises(TypeError, match='type int'):
        relative_error(Counting(), Counting(), PROBE)


def test_precision_settings_come_back():
    torch.set_float32_matmul_precision('high')
    try:
        relative_error(Levels(1.0), Levels(1.0), PROBE)
        assert torch.get_float32_matmul_precision() == 'high'
    finally:
        torch.set_float32_matmul_precision('highest')
