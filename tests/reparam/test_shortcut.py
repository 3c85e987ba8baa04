"""Shortcut elimination against the block that it replaces, in float64, along odd sizes and one-pixel borders."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repnext_mm.reparam import Kernel, affine_of, eliminate_shortcut, norm_before
from tests.conftest import randomize, worst_error


def kernel(*shape: int, bias: bool = True) -> Kernel:
    return Kernel(torch.randn(*shape).double(), torch.randn(shape[0]).double() if bias else None)


def branch(x: Tensor, spatial: Kernel, expand: Kernel, project: Kernel, act) -> Tensor:
    height, width = spatial.weight.shape[2:]
    y = F.conv2d(x, *spatial, padding=(height // 2, width // 2), groups=x.shape[1])
    return F.conv2d(act(F.conv2d(y, *expand)), *project)


@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no bias'])
@pytest.mark.parametrize('size', [(1, 1), (1, 6), (7, 5), (13, 9)], ids=str)
@pytest.mark.parametrize('window', [(7, 7), (3, 5), (1, 1)], ids=str)
@pytest.mark.parametrize(('channels', 'hidden'), [(3, 12), (5, 5), (4, 1), (1, 7)])
def test_one_branch_equals_branch_and_shortcut(channels, hidden, window, size, bias):
    kernels = (
        kernel(channels, 1, *window, bias=bias),
        kernel(hidden, channels, 1, 1, bias=bias),
        kernel(channels, hidden, 1, 1, bias=bias),
    )
    x = torch.randn(2, channels, *size).double()
    merged = eliminate_shortcut(*kernels)
    assert worst_error(branch(x, *merged, F.gelu), F.gelu(x) + branch(x, *kernels, F.gelu)) < 1e-12
    assert [k.weight.shape[:2] for k in merged] == [
        (2 * channels, 1),
        (channels + hidden, 2 * channels),
        (channels, channels + hidden),
    ]
    assert all((k.bias is None) == (not bias) for k in merged)


@pytest.mark.parametrize('act', [F.relu, F.silu, torch.tanh, lambda x: x * 2], ids=['relu', 'silu', 'tanh', 'linear'])
def test_any_activation_of_single_elements(act):
    kernels, x = (kernel(4, 1, 3, 3), kernel(8, 4, 1, 1), kernel(4, 8, 1, 1)), torch.randn(2, 4, 5, 7).double()
    assert worst_error(branch(x, *eliminate_shortcut(*kernels), act), act(x) + branch(x, *kernels, act)) < 1e-12


def test_an_activation_that_mixes_channels_is_the_callers_mistake():
    """Why the condition is stated."""
    kernels, x = (kernel(4, 1, 3, 3), kernel(8, 4, 1, 1), kernel(4, 8, 1, 1)), torch.randn(2, 4, 5, 7).double()
    softmax = nn.Softmax(dim=1)
    merged = branch(x, *eliminate_shortcut(*kernels), softmax)
    assert worst_error(merged, softmax(x) + branch(x, *kernels, softmax)) > 1e-3


def test_the_layout_is_that_of_published_files():
    """Copies and outputs take turns, as the authors' own conversion writes them."""
    spatial, expand, project = eliminate_shortcut(kernel(2, 1, 3, 3), kernel(3, 2, 1, 1), kernel(2, 3, 1, 1))
    dirac = torch.zeros(3, 3).double()
    dirac[1, 1] = 1
    assert torch.equal(spatial.weight[0::2, 0], dirac.expand(2, 3, 3))
    assert torch.equal(spatial.bias[0::2], torch.zeros(2).double())
    rows, columns = expand.weight[:, :, 0, 0], project.weight[:, :, 0, 0]
    assert torch.equal(rows[0:4:2, 0::2], torch.eye(2).double())
    assert not rows[1::2, 0::2].any()
    assert not rows[4:, 0::2].any()
    assert not rows[0:4:2, 1::2].any()
    assert torch.equal(columns[:, 0:4:2], torch.eye(2).double())


def test_gradients_reach_every_kernel():
    kernels = (kernel(4, 1, 3, 3), kernel(8, 4, 1, 1), kernel(4, 8, 1, 1))
    tensors = [tensor.requires_grad_() for k in kernels for tensor in k]
    x = torch.randn(2, 4, 5, 7).double()
    merged = torch.autograd.grad(branch(x, *eliminate_shortcut(*kernels), F.gelu).pow(2).sum(), tensors)
    apart = torch.autograd.grad((F.gelu(x) + branch(x, *kernels, F.gelu)).pow(2).sum(), tensors)
    for ours, theirs in zip(merged, apart, strict=True):
        assert worst_error(ours, theirs) < 1e-12


@pytest.mark.parametrize(
    ('shapes', 'message'),
    [
        (((4, 2, 3, 3), (8, 4, 1, 1), (4, 8, 1, 1)), 'must be depthwise'),
        (((4, 4), (8, 4, 1, 1), (4, 8, 1, 1)), 'must be depthwise'),
        (((4, 1, 2, 3), (8, 4, 1, 1), (4, 8, 1, 1)), 'no center'),
        (((4, 1, 3, 3), (8, 3, 1, 1), (4, 8, 1, 1)), r'expand kernel .* must be 1x1, \(8, 4, 1, 1\)'),
        (((4, 1, 3, 3), (8, 4, 3, 3), (4, 8, 1, 1)), 'expand kernel'),
        (((4, 1, 3, 3), (8, 4, 1, 1), (4, 7, 1, 1)), r'project kernel .* must be 1x1, \(4, 8, 1, 1\)'),
        (((4, 1, 3, 3), (8, 4, 1, 1), (5, 8, 1, 1)), 'project kernel'),
    ],
)
def test_shapes_that_do_not_fit(shapes, message):
    with pytest.raises(ValueError, match=message):
        eliminate_shortcut(*(kernel(*shape) for shape in shapes))


@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no bias'])
@pytest.mark.parametrize('groups', [1, 2, 4])
@pytest.mark.parametrize(('window', 'stride'), [((2, 2), 2), ((3, 1), 1), ((4, 3), 3)])
def test_norm_before_an_unpadded_window(window, stride, groups, bias):
    """The second law of the family: a norm before patches that no padding surrounds."""
    k, x = kernel(8, 4 // groups, *window, bias=bias), torch.randn(2, 4, 9, 7).double()
    norm = randomize(nn.BatchNorm2d(4).double()).eval()
    merged = norm_before(affine_of(norm), k, unpadded=True)
    expected = F.conv2d(norm(x), *k, stride, groups=groups)
    assert worst_error(F.conv2d(x, *merged, stride, groups=groups), expected) < 1e-13


def test_norm_before_a_padded_window_is_inexact():
    k, x, norm = kernel(8, 4, 3, 3), torch.randn(2, 4, 9, 7).double(), randomize(nn.BatchNorm2d(4).double()).eval()
    merged = norm_before(affine_of(norm), k, unpadded=True)
    assert worst_error(F.conv2d(x, *merged, padding=1), F.conv2d(norm(x), *k, padding=1)) > 1e-3
    with pytest.raises(ValueError, match='unpadded=True'):
        norm_before(affine_of(norm), k)
