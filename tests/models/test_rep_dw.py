"""A merged rep convolution equals its branches: output, gradients, one optimizer step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from repnext_mm.models.repnext import RepDWConvM, RepDWConvS
from repnext_mm.reparam import fuse
from tests.conftest import worst_error

CASES = [(RepDWConvS, 1), (RepDWConvS, 2), (RepDWConvM, 1), (RepDWConvM, 2)]
SIZES = [(1, 1), (1, 9), (2, 2), (8, 5), (13, 13)]


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize(('kind', 'stride'), CASES)
def test_output_and_gradients_are_those_of_the_branches(kind, stride, size):
    conv = kind(6, stride=stride).double()
    oracle = copy.deepcopy(conv)
    x = torch.randn(2, 6, *size).double().requires_grad_()
    y = x.detach().clone().requires_grad_()
    ours, theirs = conv(x), oracle.branches(y)
    assert worst_error(ours, theirs) < 1e-13
    weights = torch.randn_like(ours)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert worst_error(x.grad, y.grad) < 1e-13
    scale = max(parameter.grad.abs().max() for parameter in oracle.parameters())
    for (name, parameter), (_, reference) in zip(conv.named_parameters(), oracle.named_parameters(), strict=True):
        assert (parameter.grad - reference.grad).abs().max() < 1e-13 * scale, name


@pytest.mark.parametrize(('kind', 'stride'), CASES)
def test_optimizer_steps_are_those_of_the_branches(kind, stride):
    conv = kind(6, stride=stride).double()
    oracle = copy.deepcopy(conv)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (conv, oracle)]
    for _ in range(5):
        x = torch.randn(2, 6, 9, 7).double()
        for optimizer, output in zip(optimizers, (conv(x), oracle.branches(x)), strict=True):
            optimizer.zero_grad()
            output.pow(2).mean().backward()
            optimizer.step()
    x = torch.randn(2, 6, 9, 7).double()
    assert worst_error(conv(x), oracle.branches(x)) < 1e-13
    assert worst_error(conv(x), oracle(x)) < 1e-9


@pytest.mark.parametrize(('kind', 'stride'), CASES)
def test_one_convolution_in_training(kind, stride, monkeypatch):
    """The claim that training runs at nearly fused cost, as a count."""
    calls = []
    original = torch.nn.functional.conv2d
    monkeypatch.setattr('torch.nn.functional.conv2d', lambda *a, **k: calls.append(1) or original(*a, **k))
    kind(4, stride=stride).train()(torch.randn(1, 4, 8, 8))
    assert len(calls) == 1


@pytest.mark.parametrize(('kind', 'stride'), CASES)
def test_fused_is_a_plain_convolution(kind, stride):
    conv, x = kind(6, stride=stride).double(), torch.randn(2, 6, 9, 7).double()
    fused, report = fuse(conv)
    assert type(fused) is nn.Conv2d
    assert report.parameters_after == sum(p.numel() for p in fused.parameters())
    assert worst_error(fused(x), conv.branches(x)) < 1e-13


@pytest.mark.parametrize(('kind', 'stride'), CASES)
def test_merging_under_autocast_rounds_once(kind, stride):
    """Merged in float32 and cast once, the error is that of the cast, not that of a sum of casts."""
    conv, x = kind(6, stride=stride), torch.randn(2, 6, 9, 7)
    with torch.autocast('cpu', torch.bfloat16):
        half = conv(x)
        kernel = conv.kernel()
    assert half.dtype == torch.bfloat16
    assert {t.dtype for t in kernel} == {torch.float32}
    assert worst_error(half.float(), conv.branches(x)) < 4 * torch.finfo(torch.bfloat16).eps
