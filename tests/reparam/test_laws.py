"""Each law against the computation that it replaces, in float64, along odd sizes and one-pixel borders."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repnext_mm.reparam import (
    Affine,
    Kernel,
    add,
    affine_of,
    as_pointwise,
    average_pool,
    chain,
    chain_biased,
    concat,
    concat_grouped,
    dilate,
    embed,
    identity,
    norm_after,
    norm_after_transposed,
    norm_alone,
    norm_before,
    norm_of_sum,
    pointwise_after,
    pointwise_before,
    split,
    ungroup,
)
from repnext_mm.reparam.laws import as_linear, average
from tests.conftest import randomize, worst_error

EPS = 1e-13
EPS_OF_SUMS = 1e-12  # over channels and windows
SIZES = [(1, 1), (1, 6), (7, 5), (12, 9)]
GROUPS = [(1, 1), (2, 2), (4, 2), (2, 4), (1, 12), (12, 1), (12, 12), (4, 6), (3, 4)]
BIASES = [(True, True), (True, False), (False, True), (False, False)]
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def kernel(*shape: int, bias: bool = True) -> Kernel:
    return Kernel(torch.randn(*shape).double(), torch.randn(shape[0]).double() if bias else None)


def image(channels: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(2, channels, *size).double()


@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no bias'])
@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('small', [(5, 3), (3, 5), (1, 7), (7, 1), (1, 1)], ids=str)
@pytest.mark.parametrize('stride', [1, 2])
def test_embed(small, size, stride, bias):
    k, x = kernel(4, 2, *small, bias=bias), image(8, size)
    padding = tuple(n // 2 for n in small)
    expected = F.conv2d(x, *k, stride, padding, groups=4)
    large = embed(k, (7, 7))
    assert worst_error(F.conv2d(x, *large, stride, 3, groups=4), expected) < EPS
    assert (large.bias is None) == (not bias)


@pytest.mark.parametrize('size', [(4, 3), (3, 4), (2, 2), (6, 6)], ids=str)
def test_embed_refuses_uneven_or_negative_margins(size):
    with pytest.raises(ValueError, match='margins must be even'):
        embed(kernel(2, 1, 3, 3), size)


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize(('taps', 'step'), [(2, 2), (3, 2), (3, 3), (2, 1)])
def test_dilate(taps, step, stride, size):
    k, x = kernel(3, 1, taps, taps), image(3, size)
    padding = (taps - 1) * step // 2 + 1
    expected = F.conv2d(x, *k, stride, padding, step, groups=3)
    dense = dilate(k, step)
    assert dense.weight.shape[2:] == ((taps - 1) * step + 1,) * 2
    assert worst_error(F.conv2d(x, *dense, stride, padding, groups=3), expected) < EPS


def test_dilate_refuses_a_step_below_one():
    with pytest.raises(ValueError, match='dilation 0'):
        dilate(kernel(1, 1, 2, 2), 0)


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize(('width', 'height'), [(3, 3), (7, 7), (5, 11)])
def test_chain(width, height, stride, size):
    row, col, x = kernel(3, 1, 1, width, bias=False), kernel(3, 1, height, 1), image(3, size)
    first = F.conv2d(x, *row, (1, stride), (0, width // 2), groups=3)
    expected = F.conv2d(first, *col, (stride, 1), (height // 2, 0), groups=3)
    merged = F.conv2d(x, *chain(row, col), stride, (height // 2, width // 2), groups=3)
    assert worst_error(merged, expected) < EPS


def test_chain_refuses_a_bias_in_between():
    with pytest.raises(ValueError, match='zero padding'):
        chain(kernel(3, 1, 1, 3), kernel(3, 1, 3, 1))


@pytest.mark.parametrize(
    'shapes', [((3, 1, 3, 1), (3, 1, 1, 3)), ((3, 2, 1, 3), (3, 1, 3, 1)), ((3, 1, 1, 3), (4, 1, 3, 1))], ids=str
)
def test_chain_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match='need depthwise'):
        chain(kernel(*shapes[0], bias=False), kernel(*shapes[1]))


def test_the_biased_pair_of_the_large_scale_is_inexact_at_the_border_only():
    """Why the large scale stays two convolutions in the default form."""
    row, col, x = kernel(2, 1, 1, 11), kernel(2, 1, 11, 1), image(2, (24, 24))
    expected = F.conv2d(F.conv2d(x, *row, 1, (0, 5), groups=2), *col, 1, (5, 0), groups=2)
    bias = col.bias + col.weight.flatten(1).sum(1) * row.bias
    merged = F.conv2d(x, chain(Kernel(row.weight, None), col).weight, bias, 1, 5, groups=2)
    assert worst_error(merged[:, :, 5:-5], expected[:, :, 5:-5]) < EPS
    assert worst_error(merged, expected) > 1e-3


@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no bias'])
@pytest.mark.parametrize('size', [*SIZES, (4, 3), (24, 24)], ids=str)
@pytest.mark.parametrize('length', [3, 11])
def test_chain_biased_is_exact_up_to_the_border(length, size, bias):
    row, col, x = kernel(2, 1, 1, length), kernel(2, 1, length, 1, bias=bias), image(2, size)
    pad = length // 2
    expected = F.conv2d(F.conv2d(x, *row, 1, (0, pad), groups=2), *col, 1, (pad, 0), groups=2)
    whole, border = chain_biased(row, col)
    ones = torch.ones(1, 2, size[0], 1).double()
    lacking = F.conv2d(ones, *border, 1, (pad, 0), groups=2)
    assert worst_error(F.conv2d(x, *whole, 1, pad, groups=2) + lacking, expected) < EPS
    assert bool((lacking[:, :, pad:-pad].abs() < EPS).all())  # nothing is lacking inside


def test_chain_biased_refuses_what_chain_can_do():
    with pytest.raises(ValueError, match='use chain'):
        chain_biased(kernel(3, 1, 1, 3, bias=False), kernel(3, 1, 3, 1))


@pytest.mark.parametrize('size', [(1, 1), (7, 7), (3, 5)], ids=str)
def test_identity(size):
    x = image(3, (4, 5))
    kept = identity(3, size, like=x)
    assert torch.equal(F.conv2d(x, *kept, 1, (size[0] // 2, size[1] // 2), groups=3), x)


def test_identity_refuses_even_sizes():
    with pytest.raises(ValueError, match='no center'):
        identity(3, (2, 3), like=torch.ones(1))


@pytest.mark.parametrize('biases', [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_add(biases):
    kernels, x = [kernel(4, 3, 3, 3, bias=bias) for bias in biases], image(3, (7, 5))
    expected = sum(F.conv2d(x, *k, padding=1) for k in kernels)
    total = add(*kernels)
    assert worst_error(F.conv2d(x, *total, padding=1), expected) < EPS
    assert (total.bias is None) == (not any(biases))


def test_add_refuses_different_shapes():
    with pytest.raises(ValueError, match='embed'):
        add(kernel(2, 1, 3, 3), kernel(2, 1, 3, 1))


@pytest.mark.parametrize('biases', [(True, True), (True, False), (False, False)], ids=str)
def test_concat(biases):
    first, second, x = kernel(4, 3, 3, 3, bias=biases[0]), kernel(2, 3, 3, 3, bias=biases[1]), image(3, (7, 5))
    expected = torch.cat([F.conv2d(x, *first, padding=1), F.conv2d(x, *second, padding=1)], 1)
    both = concat(first, second)
    assert worst_error(F.conv2d(x, *both, padding=1), expected) < EPS
    assert (both.bias is None) == (not any(biases))


def test_concat_refuses_different_windows():
    with pytest.raises(ValueError, match='stack'):
        concat(kernel(2, 1, 3, 3), kernel(2, 1, 7, 7))


def batch_norm(channels: int, *, affine: bool = True) -> nn.BatchNorm2d:
    return randomize(nn.BatchNorm2d(channels, affine=affine).double()).eval()


@pytest.mark.parametrize('affine', [True, False], ids=['affine', 'plain'])
@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no bias'])
@pytest.mark.parametrize('groups', [1, 2, 4])
def test_norm_after(groups, bias, affine):
    k, norm, x = kernel(8, 4 // groups, 3, 3, bias=bias), batch_norm(8, affine=affine), image(4, (7, 5))
    expected = norm(F.conv2d(x, *k, 2, 1, groups=groups))
    merged = F.conv2d(x, *norm_after(k, affine_of(norm)), 2, 1, groups=groups)
    assert worst_error(merged, expected) < EPS


@pytest.mark.parametrize('affine', [True, False], ids=['affine', 'plain'])
@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no bias'])
@pytest.mark.parametrize('groups', [1, 2, 4])
def test_norm_before(groups, bias, affine):
    k, norm, x = kernel(8, 4 // groups, 1, 1, bias=bias), batch_norm(4, affine=affine), image(4, (7, 5))
    expected = F.conv2d(norm(x), *k, 2, groups=groups)
    assert worst_error(F.conv2d(x, *norm_before(affine_of(norm), k), 2, groups=groups), expected) < EPS


def test_norm_before_a_linear_layer():
    norm, k, x = randomize(nn.BatchNorm1d(6).double()).eval(), kernel(5, 6), torch.randn(3, 6).double()
    assert worst_error(F.linear(x, *norm_before(affine_of(norm), k)), F.linear(norm(x), *k)) < EPS


def test_norm_before_refuses_a_padded_window():
    with pytest.raises(ValueError, match='padding'):
        norm_before(affine_of(batch_norm(4)), kernel(8, 4, 3, 3))


def test_norms_refuse_other_channel_counts():
    with pytest.raises(ValueError, match='cannot follow'):
        norm_after(kernel(8, 4, 1, 1), affine_of(batch_norm(4)))
    with pytest.raises(ValueError, match='cannot feed'):
        norm_before(affine_of(batch_norm(5)), kernel(8, 4, 1, 1))
    with pytest.raises(ValueError, match='sum up'):
        split(affine_of(batch_norm(5)), 2, 2)


def test_a_split_norm_stacks_up_again():
    norm = affine_of(batch_norm(5))
    parts = split(norm, 2, 3)
    assert torch.equal(torch.cat([part.scale for part in parts]), norm.scale)
    assert torch.equal(torch.cat([part.shift for part in parts]), norm.shift)


@pytest.mark.parametrize(
    'norm',
    [nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False).eval(), nn.GroupNorm(2, 4)],
    ids=['training', 'no statistics', 'group norm'],
)
def test_read_norm_refuses_what_is_no_affine_map(norm):
    with pytest.raises(ValueError, match=r'running statistics|batch norms fold'):
        affine_of(norm)


@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no bias'])
def test_average(bias):
    first, second, x = kernel(5, 6, bias=bias), kernel(5, 6, bias=bias), torch.randn(3, 6).double()
    expected = (F.linear(x, *first) + F.linear(x, *second)) / 2
    assert worst_error(F.linear(x, *average(first, second)), expected) < EPS


def test_average_refuses_different_heads():
    with pytest.raises(ValueError, match='average'):
        average(kernel(5, 6), kernel(4, 6))


def test_laws_keep_the_dtype_under_autocast():
    """Merged kernels stay in the parameters' precision; only the convolution itself is cast."""
    norm = Affine(torch.rand(4), torch.rand(4))
    row, col = (Kernel(torch.rand(4, 1, *shape), None) for shape in ((1, 3), (3, 1)))
    with torch.autocast('cpu', torch.bfloat16):
        merged = norm_after(add(chain(row, col), embed(row, (3, 3))), norm)
        pointwise = norm_before(norm, Kernel(torch.rand(8, 4, 1, 1), torch.rand(8)))
    assert {t.dtype for t in (*merged, *pointwise)} == {torch.float32}


def test_norm_before_keeps_only_its_arguments_for_the_backward_pass():
    norm = Affine(torch.rand(32, requires_grad=True), torch.rand(32, requires_grad=True))
    weight, saved = torch.rand(64, 32, 1, 1, requires_grad=True), {}

    def keep(value):
        saved[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        merged = norm_before(norm, Kernel(weight, None))
    assert sum(saved.values()) == 4 * (64 * 32 + 32 + 32)
    assert merged.weight.requires_grad


@pytest.mark.parametrize(
    ('conv', 'small', 'large'),
    [
        (F.conv1d, (3,), (7,)),
        (F.conv3d, (1, 3, 5), (5, 3, 7)),
        (F.conv3d, (5, 1, 1), (5, 5, 5)),
    ],
    ids=['1d', '3d', '3d, one axis'],
)
def test_embed_along_any_number_of_axes(conv, small, large):
    k, x = kernel(4, 2, *small), torch.randn(2, 8, *[6] * len(small)).double()
    expected = conv(x, *k, padding=tuple(n // 2 for n in small), groups=4)
    assert worst_error(conv(x, *embed(k, large), padding=tuple(n // 2 for n in large), groups=4), expected) < EPS


def test_embed_refuses_another_number_of_axes():
    with pytest.raises(ValueError, match='one per axis'):
        embed(kernel(2, 1, 3, 3), (5, 5, 5))


@pytest.mark.parametrize('conv', [F.conv1d, F.conv3d], ids=['1d', '3d'])
def test_dilate_along_any_number_of_axes(conv):
    axes = 1 if conv is F.conv1d else 3
    k, x = kernel(4, 2, *[2] * axes), torch.randn(2, 8, *[6] * axes).double()
    assert worst_error(conv(x, *dilate(k, 3), groups=4), conv(x, *k, dilation=3, groups=4)) < EPS


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
    assert worst_error(CONV[axes](x, *mean, stride, padding, groups=groups or 4), expected) < EPS_OF_SUMS
    assert mean.bias is None


def test_why_average_pool_needs_count_include_pad():
    x = torch.rand(1, 2, 5, 5).double() + 1
    pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    convolved = F.conv2d(x, *average_pool(2, (3, 3), like=x), padding=1, groups=2)
    assert worst_error(convolved[..., 1:-1, 1:-1], pooled[..., 1:-1, 1:-1]) < EPS_OF_SUMS
    assert worst_error(convolved, pooled) > 0.1


def test_average_pool_refuses_an_empty_window():
    with pytest.raises(ValueError, match='averages nothing'):
        average_pool(2, (0, 3), like=torch.ones(1))


@pytest.mark.parametrize('groups', [1, 3, None])
@pytest.mark.parametrize('axes', [1, 2, 3])
@pytest.mark.parametrize('length', [1, 3])
def test_norm_alone(axes, length, groups):
    norm = randomize(NORM[axes](6).double()).eval()
    x = torch.randn(2, 6, *[4] * axes).double()
    alone = norm_alone(affine_of(norm), size=[length] * axes, groups=groups)
    assert worst_error(CONV[axes](x, *alone, padding=length // 2, groups=groups or 6), norm(x)) < EPS_OF_SUMS


def test_a_repvgg_block_is_a_sum_of_laws():
    """A 3x3 beside a normed shortcut."""
    norm, k, x = randomize(nn.BatchNorm2d(4).double()).eval(), kernel(4, 2, 3, 3), torch.randn(1, 4, 5, 6).double()
    whole = add(k, norm_alone(affine_of(norm), size=(3, 3), groups=2))
    expected = F.conv2d(x, *k, padding=1, groups=2) + norm(x)
    assert worst_error(F.conv2d(x, *whole, padding=1, groups=2), expected) < EPS_OF_SUMS


@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no bias'])
@pytest.mark.parametrize('axes', [1, 2, 3])
def test_linear_layers_and_1x1_convolutions(axes, bias):
    linear, x = kernel(5, 4, bias=bias), torch.randn(2, 4, *[3] * axes).double()
    point = as_pointwise(linear, axes=axes)
    expected = F.linear(x.movedim(1, -1), *linear).movedim(-1, 1)
    assert worst_error(CONV[axes](x, *point), expected) < EPS_OF_SUMS
    assert torch.equal(as_linear(point).weight, linear.weight)
    assert as_linear(point).bias is linear.bias


def test_a_grouped_1x1_is_a_linear_layer_once_it_is_ungrouped():
    point, x = kernel(6, 2, 1, 1), torch.randn(3, 4).double()
    expected = F.conv2d(x[..., None, None], *point, groups=2).flatten(1)
    assert worst_error(F.linear(x, *as_linear(ungroup(point, 2))), expected) < EPS_OF_SUMS


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
    assert worst_error(CONV[axes](x, *wide, stride=2, padding=1, groups=into), expected) < EPS_OF_SUMS


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
    assert worst_error(F.conv2d(x, *both, padding=1, groups=groups)[:, order], expected) < EPS_OF_SUMS
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
    assert worst_error(F.conv2d(x, *both, padding=1, groups=sum(groups)), expected) < EPS_OF_SUMS


@pytest.mark.parametrize('groups', [(4, 1), (3, 2), (1, 1)], ids=str)
def test_concat_refuses_groups_of_different_sizes(groups):
    with pytest.raises(ValueError, match='all groups must be of one size'):
        concat(kernel(8, 2, 3, 3), kernel(4, 2, 3, 3), groups=groups)


def image_of_12(*size: int) -> torch.Tensor:
    return torch.randn(2, 12, *size).double()


@pytest.mark.parametrize('biases', BIASES, ids=str)
@pytest.mark.parametrize('groups', GROUPS, ids=str)
def test_pointwise_before_without_padding(groups, biases):
    first = kernel(12, 12 // groups[0], 1, 1, bias=biases[0])
    then = kernel(24, 12 // groups[1], 3, 5, bias=biases[1])
    x = image_of_12(7, 9)
    expected = F.conv2d(F.conv2d(x, *first, groups=groups[0]), *then, stride=2, dilation=(2, 1), groups=groups[1])
    merged = pointwise_before(first, then, groups=groups, zeros_between=False)
    result = F.conv2d(x, *merged, stride=2, dilation=(2, 1), groups=math.gcd(*groups))
    assert worst_error(result, expected) < EPS_OF_SUMS
    assert (merged.bias is None) == (not any(biases))


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [(1, 1), (6, 5), (7, 7)], ids=str)
def test_pointwise_before_with_the_padding_between(size, stride):
    first, then, x = kernel(8, 12, 1, 1, bias=False), kernel(6, 8, 3, 3), image_of_12(*size)
    expected = F.conv2d(F.conv2d(x, *first), *then, stride, 1)
    assert worst_error(F.conv2d(x, *pointwise_before(first, then), stride, 1), expected) < EPS_OF_SUMS


@pytest.mark.parametrize('groups', [(1, 1), (2, 4)], ids=str)
def test_pointwise_before_with_the_padding_on_the_input(groups):
    """The 1x1 of zeros is its bias: padding its input lets the kxk see that, and the merged kxk the zeros."""
    first, then = kernel(12, 12 // groups[0], 1, 1), kernel(12, 12 // groups[1], 3, 3)
    x = image_of_12(5, 4)
    expected = F.conv2d(F.conv2d(x, *first, padding=1, groups=groups[0]), *then, groups=groups[1])
    merged = pointwise_before(first, then, groups=groups, zeros_between=False)
    assert worst_error(F.conv2d(x, *merged, padding=1, groups=math.gcd(*groups)), expected) < EPS_OF_SUMS


def test_pointwise_why_a_bias_before_zeros_is_refused():
    first, then, x = kernel(12, 12, 1, 1), kernel(6, 12, 3, 3), image_of_12(6, 6)
    expected = F.conv2d(F.conv2d(x, *first), *then, padding=1)
    wrong = F.conv2d(x, *pointwise_before(first, then, zeros_between=False), padding=1)
    assert worst_error(wrong[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1]) < EPS_OF_SUMS
    assert worst_error(wrong, expected) > 1e-3
    with pytest.raises(ValueError, match=r'meets the zero padding.*zeros_between=False'):
        pointwise_before(first, then)


@pytest.mark.parametrize('biases', BIASES, ids=str)
@pytest.mark.parametrize('groups', GROUPS, ids=str)
def test_pointwise_after(groups, biases):
    first = kernel(12, 12 // groups[0], 5, 3, bias=biases[0])
    then = kernel(24, 12 // groups[1], 1, 1, bias=biases[1])
    x = image_of_12(7, 9)
    expected = F.conv2d(F.conv2d(x, *first, 1, (3, 1), groups=groups[0]), *then, stride=2, groups=groups[1])
    merged = pointwise_after(first, then, groups=groups)
    assert worst_error(F.conv2d(x, *merged, 2, (3, 1), groups=math.gcd(*groups)), expected) < EPS_OF_SUMS
    assert (merged.bias is None) == (not any(biases))


@pytest.mark.parametrize('axes', [1, 2, 3])
def test_pointwise_any_number_of_axes(axes):
    conv, x = CONV[axes], image_of_12(*[5] * axes)
    point, window = kernel(6, 12, *[1] * axes), kernel(8, 6, *[3] * axes)
    expected = conv(conv(x, *point), *window)
    assert worst_error(conv(x, *pointwise_before(point, window, zeros_between=False)), expected) < EPS_OF_SUMS
    window, point = kernel(6, 12, *[3] * axes), kernel(8, 6, *[1] * axes)
    expected = conv(conv(x, *window, padding=2), *point)
    assert worst_error(conv(x, *pointwise_after(window, point), padding=2), expected) < EPS_OF_SUMS


def test_pointwise_linear_layers_chain_alike():
    first, then, x = kernel(7, 12), kernel(5, 7), torch.randn(3, 12).double()
    expected = F.linear(F.linear(x, *first), *then)
    assert worst_error(F.linear(x, *pointwise_after(first, then)), expected) < EPS_OF_SUMS


def test_pointwise_gradients_flow_and_autocast_changes_nothing():
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


def test_pointwise_shapes_without_values():
    merged = pointwise_after(
        Kernel(torch.empty(6, 3, 3, 3, device='meta'), None), Kernel(torch.empty(4, 6, 1, 1, device='meta'), None)
    )
    assert merged.weight.shape == (4, 3, 3, 3)


@pytest.mark.parametrize('law', [pointwise_before, pointwise_after])
def test_pointwise_what_is_no_1x1_is_refused(law):
    with pytest.raises(ValueError, match='not a 1x1'):
        law(kernel(6, 6, 3, 3), kernel(6, 6, 3, 3))


@pytest.mark.parametrize('law', [pointwise_before, pointwise_after])
@pytest.mark.parametrize('then', [(6, 5, 1, 1), (6, 6, 1), (6, 12, 1, 1)], ids=str)
def test_pointwise_shapes_that_do_not_follow_are_refused(law, then):
    with pytest.raises(ValueError, match='cannot follow'):
        law(kernel(6, 4, 1, 1, bias=False), kernel(*then))
