"""Each law against the computation that it replaces, in float64, along odd sizes and one-pixel borders."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repnext_mm.reparam import (
    Affine,
    Kernel,
    add,
    affine_of,
    chain,
    chain_biased,
    concat,
    dilate,
    embed,
    identity,
    norm_after,
    norm_before,
    split,
)
from repnext_mm.reparam.laws import average
from tests.conftest import randomise, worst_error

EPS = 1e-13
SIZES = [(1, 1), (1, 6), (7, 5), (12, 9)]


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
    with pytest.raises(ValueError, match='no centre'):
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
    return randomise(nn.BatchNorm2d(channels, affine=affine).double()).eval()


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
    norm, k, x = randomise(nn.BatchNorm1d(6).double()).eval(), kernel(5, 6), torch.randn(3, 6).double()
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
