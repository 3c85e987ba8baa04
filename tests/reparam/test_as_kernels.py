"""Layers that are convolutions in disguise, and grouped convolutions written otherwise, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repnext_mm.reparam import (
    Kernel,
    add,
    affine_of,
    as_pointwise,
    average_pool,
    concat,
    concat_grouped,
    identity,
    norm_alone,
    ungroup,
)
from repnext_mm.reparam.laws import as_linear
from tests.conftest import randomise, worst_error

EPS = 1e-12
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def kernel(*shape: int, bias: bool = True) -> Kernel:
    return Kernel(torch.randn(*shape).double(), torch.randn(shape[0]).double() if bias else None)


@pytest.mark.parametrize('groups', [1, 2, 3, 6, None])
@pytest.mark.parametrize('axes', [1, 2, 3])
def test_identity_in_groups(axes, groups):
    x = torch.randn(2, 6, *[5] * axes).double()
    size = (3, 5, 1)[:axes]
    kept = identity(6, size, like=x, groups=groups)
    padding = tuple(length // 2 for length in size)
    assert torch.equal(CONV[axes](x, *kept, padding=padding, groups=groups or 6), x)


@pytest.mark.parametrize('groups', [4, 0])
def test_identity_refuses_groups_that_do_not_divide(groups):
    with pytest.raises(ValueError, match=f'6 channels do not divide into {groups} groups'):
        identity(6, (3, 3), like=torch.ones(1), groups=groups)


@pytest.mark.parametrize('groups', [1, 2, None])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('axes', [1, 2, 3])
def test_average_pool(axes, stride, groups):
    x, size = torch.randn(2, 4, *[7] * axes).double(), (3, 2, 4)[:axes]
    padding = tuple(length // 2 for length in size)
    expected = POOL[axes](x, size, stride, padding)  # count_include_pad is the default
    mean = average_pool(4, size, like=x, groups=groups)
    assert worst_error(CONV[axes](x, *mean, stride, padding, groups=groups or 4), expected) < EPS
    assert mean.bias is None


def test_why_average_pool_needs_count_include_pad():
    x = torch.rand(1, 2, 5, 5).double() + 1
    pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    convolved = F.conv2d(x, *average_pool(2, (3, 3), like=x), padding=1, groups=2)
    assert worst_error(convolved[..., 1:-1, 1:-1], pooled[..., 1:-1, 1:-1]) < EPS
    assert worst_error(convolved, pooled) > 0.1


def test_average_pool_refuses_an_empty_window():
    with pytest.raises(ValueError, match='averages nothing'):
        average_pool(2, (0, 3), like=torch.ones(1))


@pytest.mark.parametrize('groups', [1, 3, None])
@pytest.mark.parametrize('axes', [1, 2, 3])
@pytest.mark.parametrize('length', [1, 3])
def test_norm_alone(axes, length, groups):
    norm = randomise(NORM[axes](6).double()).eval()
    x = torch.randn(2, 6, *[4] * axes).double()
    alone = norm_alone(affine_of(norm), size=[length] * axes, groups=groups)
    assert worst_error(CONV[axes](x, *alone, padding=length // 2, groups=groups or 6), norm(x)) < EPS


def test_a_repvgg_block_is_a_sum_of_laws():
    """A 3x3 beside a normed shortcut."""
    norm, k, x = randomise(nn.BatchNorm2d(4).double()).eval(), kernel(4, 2, 3, 3), torch.randn(1, 4, 5, 6).double()
    whole = add(k, norm_alone(affine_of(norm), size=(3, 3), groups=2))
    assert worst_error(F.conv2d(x, *whole, padding=1, groups=2), F.conv2d(x, *k, padding=1, groups=2) + norm(x)) < EPS


@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no bias'])
@pytest.mark.parametrize('axes', [1, 2, 3])
def test_linear_layers_and_1x1_convolutions(axes, bias):
    linear, x = kernel(5, 4, bias=bias), torch.randn(2, 4, *[3] * axes).double()
    point = as_pointwise(linear, axes=axes)
    expected = F.linear(x.movedim(1, -1), *linear).movedim(-1, 1)
    assert worst_error(CONV[axes](x, *point), expected) < EPS
    assert torch.equal(as_linear(point).weight, linear.weight)
    assert as_linear(point).bias is linear.bias


def test_a_grouped_1x1_is_a_linear_layer_once_it_is_ungrouped():
    point, x = kernel(6, 2, 1, 1), torch.randn(3, 4).double()
    expected = F.conv2d(x[..., None, None], *point, groups=2).flatten(1)
    assert worst_error(F.linear(x, *as_linear(ungroup(point, 2))), expected) < EPS


def test_other_shapes_are_no_linear_layers():
    with pytest.raises(ValueError, match='not a linear layer'):
        as_linear(kernel(4, 4, 1, 3))
    with pytest.raises(ValueError, match='not a linear layer'):
        as_linear(kernel(4, 4))
    with pytest.raises(ValueError, match='not a linear layer'):
        as_pointwise(kernel(4, 4, 1, 1))


@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no bias'])
@pytest.mark.parametrize(('groups', 'into'), [(1, 1), (2, 1), (6, 1), (6, 2), (6, 3), (6, 6)])
@pytest.mark.parametrize('axes', [1, 2, 3])
def test_ungroup(axes, groups, into, bias):
    k, x = kernel(12, 6 // groups, *[3] * axes, bias=bias), torch.randn(2, 6, *[5] * axes).double()
    expected = CONV[axes](x, *k, stride=2, padding=1, groups=groups)
    wide = ungroup(k, groups, into=into)
    assert wide.weight.shape[1] == 6 // into
    assert worst_error(CONV[axes](x, *wide, stride=2, padding=1, groups=into), expected) < EPS


@pytest.mark.parametrize(('groups', 'into'), [(6, 4), (5, 1), (6, 0)])
def test_ungroup_refuses_groups_that_do_not_divide(groups, into):
    with pytest.raises(ValueError, match='must divide'):
        ungroup(kernel(12, 2, 3, 3), groups, into=into)


@pytest.mark.parametrize('biases', [(True, True), (True, False), (False, False)], ids=str)
@pytest.mark.parametrize('groups', [1, 2, 4])
def test_concat_grouped(groups, biases):
    first = kernel(8, 4 // groups, 3, 3, bias=biases[0])
    second = kernel(4, 4 // groups, 3, 3, bias=biases[1])
    x = torch.randn(2, 4, 5, 7).double()
    expected = torch.cat([F.conv2d(x, *k, padding=1, groups=groups) for k in (first, second)], 1)
    both, order = concat_grouped(first, second, groups=groups)
    assert worst_error(F.conv2d(x, *both, padding=1, groups=groups)[:, order], expected) < EPS
    assert (both.bias is None) == (not any(biases))


def test_concat_grouped_refuses_groups_that_do_not_divide():
    with pytest.raises(ValueError, match='do not divide into 4 groups'):
        concat_grouped(kernel(8, 1, 3, 3), kernel(6, 1, 3, 3), groups=4)


@pytest.mark.parametrize('groups', [(2, 1), (4, 2)], ids=str)
def test_concat_of_slices(groups):
    """Each kernel reads its own slice of the input, as depthwise convolutions of thirds do."""
    first, second = kernel(8, 4 // groups[0], 3, 3), kernel(4, 2 // groups[1], 3, 3)
    x = torch.randn(2, 6, 5, 7).double()
    parts = zip((first, second), x.split([4, 2], 1), groups, strict=True)
    expected = torch.cat([F.conv2d(part, *k, padding=1, groups=count) for k, part, count in parts], 1)
    both = concat(first, second, groups=groups)
    assert worst_error(F.conv2d(x, *both, padding=1, groups=sum(groups)), expected) < EPS


@pytest.mark.parametrize('groups', [(4, 1), (3, 2), (1, 1)], ids=str)
def test_concat_refuses_groups_of_different_sizes(groups):
    with pytest.raises(ValueError, match='all groups must be of one size'):
        concat(kernel(8, 2, 3, 3), kernel(4, 2, 3, 3), groups=groups)
