"""The verifier sees every difference and is not fooled by NaN."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repnext_mm.reparam import relative_error, within


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
    assert within(errors, 0.5)
    assert not within(errors, 0.4)


@pytest.mark.parametrize(
    'pair',
    [(float('nan'), 1.0), (1.0, float('nan')), (float('inf'), 1.0), (1.0, float('inf')), (float('inf'), float('inf'))],
    ids=str,
)
def test_nan_and_inf_never_pass(pair):
    errors = relative_error(Levels(1.0, pair[0]), Levels(1.0, pair[1]), PROBE)
    assert not within(errors, 1e30)


def test_no_levels_never_pass():
    assert not within((), 1.0)


def test_zero_reference_gives_the_absolute_error():
    assert relative_error(Levels(0.25), Levels(0.0), PROBE) == (0.5,)


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
