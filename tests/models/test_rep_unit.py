"""RepNeXtU's units equal one 7x7 once norms fold, run their branches before, and fuse to a plain convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repnext_mm.models.repnext_u import REP_UNITS, PatchMerging, PatchStem, UnitBlock
from repnext_mm.reparam import fuse
from repnext_mm.reparam.fuse import count_norms, count_parameters
from tests.conftest import randomise, worst_error

UNITS = ['u1', 'u2', 'u3']
SIZES = [(1, 1), (1, 9), (2, 2), (8, 5), (13, 13)]


def unit(name: str, channels: int = 6) -> nn.Module:
    return randomise(REP_UNITS[name](channels)).double().eval()


def by_definition(block: UnitBlock, x: torch.Tensor) -> torch.Tensor:
    """Every branch and norm apart."""
    gelu = torch.nn.functional.gelu
    return gelu(x) + block.pwconv2(gelu(block.pwconv1(block.feature.branches(x))))


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('name', UNITS)
def test_merged_equals_branches(name, size):
    module, x = unit(name), torch.randn(2, 6, *size).double().requires_grad_()
    merged, branches = module(x), module.branches(x)
    assert worst_error(merged, branches) < 1e-13
    tensors = [x, *module.parameters()]
    weights = torch.randn_like(merged)
    ours = torch.autograd.grad((merged * weights).sum(), tensors)
    theirs = torch.autograd.grad((branches * weights).sum(), tensors)
    scale = max(gradient.abs().max() for gradient in theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 1e-13 * scale


@pytest.mark.parametrize('name', UNITS)
def test_branches_run_while_norms_use_the_batch(name, monkeypatch):
    calls = []
    original = torch.nn.functional.conv2d
    module, x = unit(name), torch.randn(2, 6, 9, 7).double()
    assert torch.equal(module.train()(x), module.branches(x))
    module.eval()
    monkeypatch.setattr('torch.nn.functional.conv2d', lambda *a, **k: calls.append(1) or original(*a, **k))
    module(x)
    assert len(calls) == 1


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('name', UNITS)
def test_fused_is_a_plain_convolution(name, dtype):
    module, x = unit(name).to(dtype), torch.randn(2, 6, 9, 7).to(dtype)
    fused, report = fuse(module)
    assert type(fused) is nn.Conv2d
    assert (fused.weight.shape, fused.weight.dtype) == ((6, 1, 7, 7), dtype)
    assert report.parameters_after == 6 * 50
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert worst_error(fused(x).double(), module.double().branches(x.double())) < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize(('name', 'taps', 'norms'), [('u1', 2 * 83, 1), ('u2', 6 * 83, 3), ('u3', 6 * 57, 3)])
def test_parameters_and_names(name, taps, norms):
    module = unit(name)
    assert count_parameters(module) == taps + 12 * norms
    assert count_norms(module) == norms
    assert {m.eps for m in module.norms} == {1e-6}
    tops = {key.split('.')[0] for key in module.state_dict()}
    assert tops == {'dwconv1', 'dwconv2', 'dwconv3', *(['norm'] if name == 'u1' else ['norm1', 'norm2', 'norm3'])}
    assert not any(key.startswith('dwconv') and key.endswith('bias') for key in module.state_dict())


def test_thirds():
    with pytest.raises(ValueError, match="8 channels cannot be cut.*'u1' needs dims divisible by 3"):
        REP_UNITS['u1'](8)


@pytest.mark.parametrize('name', UNITS)
def test_fusing_in_training_mode_is_refused(name):
    with pytest.raises(ValueError, match='training mode'):
        fuse(REP_UNITS[name](6))


@pytest.mark.parametrize('name', UNITS)
def test_merging_under_autocast_rounds_once(name):
    module, x = unit(name).float(), torch.randn(2, 6, 9, 7)
    with torch.autocast('cpu', torch.bfloat16):
        half = module(x)
        kernel = module.kernel()
    assert half.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in kernel} == {torch.float32}
    assert worst_error(half.float(), module.branches(x)) < 4 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize('form', ['default', 'no_shortcut'])
@pytest.mark.parametrize('name', UNITS)
def test_blocks_fuse_exactly(name, form):
    block = randomise(UnitBlock.train_form(6, REP_UNITS[name](6), drop_path=0.2)).double().eval()
    x = torch.randn(2, 6, 9, 7).double()
    before, expected = x.clone(), by_definition(block, x)
    fused, report = fuse(block, form=form)
    with torch.no_grad():  # where activations are written over
        assert worst_error(fused(x), expected) < 1e-13
    assert torch.equal(x, before)
    assert worst_error(fused(x), expected) < 1e-13
    pointwise = 15 * 36 + 6 * 6 if form == 'no_shortcut' else 8 * 36 + 5 * 6
    assert report.parameters_after == pointwise + (2 if form == 'no_shortcut' else 1) * 50 * 6
    assert report.norms_after == 0


def test_a_kept_shortcut_can_be_eliminated_later():
    block, x = randomise(UnitBlock.train_form(6, REP_UNITS['u3'](6))).double().eval(), torch.randn(2, 6, 9, 7).double()
    kept, _ = fuse(block)
    again, nothing = fuse(kept)
    assert again is kept
    assert not nothing
    eliminated, report = fuse(kept, form='no_shortcut')
    assert report
    assert worst_error(eliminated(x), by_definition(block, x)) < 1e-13


@pytest.mark.parametrize('size', [(4, 4), (9, 7), (16, 5)], ids=str)
@pytest.mark.parametrize('layer', [PatchStem(3, 8), PatchMerging(3, 8)], ids=['stem', 'merging'])
def test_patches_fuse_exactly(layer, size):
    layer, x = randomise(layer).double().eval(), torch.randn(2, 3, *size).double()
    first, second = layer
    fused, report = fuse(layer)
    assert type(fused) is nn.Conv2d
    assert (report.norms_before, report.norms_after) == (1, 0)
    expected = second(first(x))
    assert worst_error(layer(x), expected) < 1e-13
    assert worst_error(fused(x), expected) < 1e-13
    x = torch.randn(2, 3, 16, 16).double()
    assert torch.equal(layer.train()(x), second(first(x)))
