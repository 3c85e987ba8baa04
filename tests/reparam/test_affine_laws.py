"""Laws about norms of transposed convolutions and of sums, against the computation that they replace, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from repnext_mm.reparam import Affine, Kernel, norm_after, norm_after_transposed, norm_of_sum
from tests.conftest import worst_error

EPS = 1e-13


def affine(channels: int) -> Affine:
    return Affine(torch.randn(channels).double(), torch.randn(channels).double())


def normed(x: torch.Tensor, norm: Affine) -> torch.Tensor:
    shape = (-1, *[1] * (x.dim() - 2))
    return x * norm.scale.reshape(shape) + norm.shift.reshape(shape)


@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no bias'])
@pytest.mark.parametrize('groups', [1, 2, 4])
@pytest.mark.parametrize('geometry', [(1, 0, 0), (2, 1, 1), (3, 0, 2)], ids=str)
@pytest.mark.parametrize('axes', [1, 2, 3])
def test_norm_after_transposed(axes, geometry, groups, bias):
    outputs, convolve = 3 * groups, (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    kernel = Kernel(torch.randn(4, 3, *[3] * axes).double(), torch.randn(outputs).double() if bias else None)
    x, norm = torch.randn(2, 4, *[5, 1, 4][:axes]).double(), affine(outputs)
    stride, padding, further = geometry
    expected = normed(convolve(x, *kernel, stride, padding, further, groups), norm)
    whole = norm_after_transposed(kernel, norm, groups=groups)
    assert worst_error(convolve(x, *whole, stride, padding, further, groups), expected) < EPS


def test_norm_after_transposed_refuses_other_channel_counts():
    with pytest.raises(ValueError, match='cannot follow a transposed convolution of shape'):
        norm_after_transposed(Kernel(torch.ones(4, 3, 1, 1), None), affine(3), groups=2)


@pytest.mark.parametrize('count', [1, 2, 3])
def test_norm_of_sum(count):
    kernels = [Kernel(torch.randn(4, 3, 3, 3).double(), torch.randn(4).double()) for _ in range(count)]
    inputs, norm = torch.randn(count, 2, 3, 5, 4).double(), affine(4)
    expected = normed(sum(F.conv2d(x, *kernel) for x, kernel in zip(inputs, kernels, strict=True)), norm)
    parts = [norm_after(kernel, own) for kernel, own in zip(kernels, norm_of_sum(norm, count), strict=True)]
    assert worst_error(sum(F.conv2d(x, *kernel) for x, kernel in zip(inputs, parts, strict=True)), expected) < EPS


def test_norm_of_sum_refuses_no_summands():
    with pytest.raises(ValueError, match='at least one'):
        norm_of_sum(affine(3), 0)
