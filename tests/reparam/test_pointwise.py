"""1x1 convolutions merged with their neighbours, against both run one after the other, in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from repnext_mm.reparam import Kernel, pointwise_after, pointwise_before
from tests.conftest import worst_error

EPS = 1e-12
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
GROUPS = [(1, 1), (2, 2), (4, 2), (2, 4), (1, 12), (12, 1), (12, 12), (4, 6), (3, 4)]
BIASES = [(True, True), (True, False), (False, True), (False, False)]


def kernel(*shape: int, bias: bool = True) -> Kernel:
    return Kernel(torch.randn(*shape).double(), torch.randn(shape[0]).double() if bias else None)


def image(*size: int) -> Tensor:
    return torch.randn(2, 12, *size).double()


@pytest.mark.parametrize('biases', BIASES, ids=str)
@pytest.mark.parametrize('groups', GROUPS, ids=str)
def test_before_without_padding(groups, biases):
    first = kernel(12, 12 // groups[0], 1, 1, bias=biases[0])
    then = kernel(24, 12 // groups[1], 3, 5, bias=biases[1])
    x = image(7, 9)
    expected = F.conv2d(F.conv2d(x, *first, groups=groups[0]), *then, stride=2, dilation=(2, 1), groups=groups[1])
    merged = pointwise_before(first, then, groups=groups, zeros_between=False)
    result = F.conv2d(x, *merged, stride=2, dilation=(2, 1), groups=math.gcd(*groups))
    assert worst_error(result, expected) < EPS
    assert (merged.bias is None) == (not any(biases))


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [(1, 1), (6, 5), (7, 7)], ids=str)
def test_before_with_the_padding_between(size, stride):
    first, then, x = kernel(8, 12, 1, 1, bias=False), kernel(6, 8, 3, 3), image(*size)
    expected = F.conv2d(F.conv2d(x, *first), *then, stride, 1)
    assert worst_error(F.conv2d(x, *pointwise_before(first, then), stride, 1), expected) < EPS


@pytest.mark.parametrize('groups', [(1, 1), (2, 4)], ids=str)
def test_before_with_the_padding_on_the_input(groups):
    """The 1x1 of zeros is its bias: padding its input lets the kxk see that, and the merged kxk the zeros."""
    first, then = kernel(12, 12 // groups[0], 1, 1), kernel(12, 12 // groups[1], 3, 3)
    x = image(5, 4)
    expected = F.conv2d(F.conv2d(x, *first, padding=1, groups=groups[0]), *then, groups=groups[1])
    merged = pointwise_before(first, then, groups=groups, zeros_between=False)
    assert worst_error(F.conv2d(x, *merged, padding=1, groups=math.gcd(*groups)), expected) < EPS


def test_why_a_bias_before_zeros_is_refused():
    first, then, x = kernel(12, 12, 1, 1), kernel(6, 12, 3, 3), image(6, 6)
    expected = F.conv2d(F.conv2d(x, *first), *then, padding=1)
    wrong = F.conv2d(x, *pointwise_before(first, then, zeros_between=False), padding=1)
    assert worst_error(wrong[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1]) < EPS
    assert worst_error(wrong, expected) > 1e-3
    with pytest.raises(ValueError, match=r'meets the zero padding.*zeros_between=False'):
        pointwise_before(first, then)


@pytest.mark.parametrize('biases', BIASES, ids=str)
@pytest.mark.parametrize('groups', GROUPS, ids=str)
def test_after(groups, biases):
    first = kernel(12, 12 // groups[0], 5, 3, bias=biases[0])
    then = kernel(24, 12 // groups[1], 1, 1, bias=biases[1])
    x = image(7, 9)
    expected = F.conv2d(F.conv2d(x, *first, 1, (3, 1), groups=groups[0]), *then, stride=2, groups=groups[1])
    merged = pointwise_after(first, then, groups=groups)
    assert worst_error(F.conv2d(x, *merged, 2, (3, 1), groups=math.gcd(*groups)), expected) < EPS
    assert (merged.bias is None) == (not any(biases))


@pytest.mark.parametrize('axes', [1, 2, 3])
def test_any_number_of_axes(axes):
    conv, x = CONV[axes], image(*[5] * axes)
    point, window = kernel(6, 12, *[1] * axes), kernel(8, 6, *[3] * axes)
    expected = conv(conv(x, *point), *window)
    assert worst_error(conv(x, *pointwise_before(point, window, zeros_between=False)), expected) < EPS
    window, point = kernel(6, 12, *[3] * axes), kernel(8, 6, *[1] * axes)
    expected = conv(conv(x, *window, padding=2), *point)
    assert worst_error(conv(x, *pointwise_after(window, point), padding=2), expected) < EPS


def test_linear_layers_chain_alike():
    first, then, x = kernel(7, 12), kernel(5, 7), torch.randn(3, 12).double()
    expected = F.linear(F.linear(x, *first), *then)
    assert worst_error(F.linear(x, *pointwise_after(first, then)), expected) < EPS


def test_gradients_flow_and_autocast_changes_nothing():
    first, then = kernel(6, 12, 1, 1), kernel(8, 6, 3, 3)
    weight = first.weight.float().requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        merged = pointwise_before(
            Kernel(weight, first.bias.float()), Kernel(then.weight.float(), None), zeros_between=False
        )
    assert merged.weight.dtype == torch.float32
    assert worst_error(merged.weight.double(), pointwise_before(Kernel(first.weight, None), then).weight) < 1e-6
    merged.weight.sum().backward()
    assert weight.grad.abs().min() > 0


def test_shapes_without_values():
    merged = pointwise_after(
        Kernel(torch.empty(6, 3, 3, 3, device='meta'), None), Kernel(torch.empty(4, 6, 1, 1, device='meta'), None)
    )
    assert merged.weight.shape == (4, 3, 3, 3)


@pytest.mark.parametrize('law', [pointwise_before, pointwise_after])
def test_what_is_no_1x1_is_refused(law):
    with pytest.raises(ValueError, match='not a 1x1'):
        law(kernel(6, 6, 3, 3), kernel(6, 6, 3, 3))


@pytest.mark.parametrize('law', [pointwise_before, pointwise_after])
@pytest.mark.parametrize('then', [(6, 5, 1, 1), (6, 6, 1), (6, 12, 1, 1)], ids=str)
def test_shapes_that_do_not_follow_are_refused(law, then):
    with pytest.raises(ValueError, match='cannot follow'):
        law(kernel(6, 4, 1, 1, bias=False), kernel(*then))
