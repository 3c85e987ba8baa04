"""Convolutions of branches, and blocks, in train form, with norms folded on the fly, and fused: the paper's formula."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from repnext_mm.models.layers import depthwise
from repnext_mm.models.repnext import ChunkConv, CopyConv, Downsample, MetaNeXtBlock, Stage
from repnext_mm.models.token_mixers import RepDWConvM, RepDWConvS
from repnext_mm.reparam import embed, fuse
from repnext_mm.reparam.fuse import count_norms
from tests.conftest import randomize, worst_error
from tests.models.backbones import check_merging_under_autocast_rounds_once

CHANNELS = 8


def block(single: bool = False, **options) -> MetaNeXtBlock:
    mixer = depthwise(CHANNELS, (11, 11)) if single else ChunkConv.train_form(CHANNELS)
    options = {'mlp_ratio': 2, 'norm_cfg': {'type': 'BN'}, 'act_cfg': {'type': 'GELU'}} | options
    return randomize(MetaNeXtBlock.train_form(CHANNELS, mixer, **options).double())


def downsample(single: bool = False, **options) -> Downsample:
    half = CHANNELS // 2
    mixer = depthwise(half, (7, 7), stride=(2, 2), expansion=2) if single else CopyConv.train_form(half)
    options = {'mlp_ratio': 2, 'norm_cfg': {'type': 'BN'}, 'act_cfg': {'type': 'GELU'}} | options
    return randomize(Downsample.train_form(CHANNELS, mixer, **options).double())


def definition(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The paper's formula, one layer at a time."""

    def conv_norm(layer, value):
        return layer.norm(layer.conv(value))

    def token_mixer(mixer, value):
        if isinstance(mixer, nn.Conv2d):
            return mixer(value)
        if isinstance(mixer, CopyConv):
            return torch.cat([mixer.conv_s.branches(value), mixer.conv_m.branches(value)], 1)
        i, s, m, large = value.chunk(4, 1)
        return torch.cat([i, mixer.conv_s.branches(s), mixer.conv_m.branches(m), mixer.conv_l(large)], 1)

    y = module.norm(token_mixer(module.token_mixer, x))
    expand, act, project = module.channel_mixer
    mixed = conv_norm(project, act(conv_norm(expand, y)))
    return (x if isinstance(module, MetaNeXtBlock) else y) + mixed


@pytest.mark.parametrize('size', [(1, 1), (3, 12), (11, 7)], ids=str)
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('single', [True, False], ids=['E', 'multi'])
@pytest.mark.parametrize('kind', [block, downsample])
def test_forward_and_gradients_follow_the_definition(kind, single, training, size):
    module = kind(single).train(training)
    oracle = copy.deepcopy(module)
    channels = CHANNELS if kind is block else CHANNELS // 2
    x = torch.randn(2, channels, *size).double()
    ours, theirs = module(x), definition(oracle, x)
    assert worst_error(ours, theirs) < 1e-12
    weights = torch.randn_like(ours)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    scale = max(parameter.grad.abs().max() for parameter in oracle.parameters())
    for (name, parameter), (_, reference) in zip(module.named_parameters(), oracle.named_parameters(), strict=True):
        assert (parameter.grad - reference.grad).abs().max() < 1e-11 * scale, name
    for (name, buffer), (_, reference) in zip(module.named_buffers(), oracle.named_buffers(), strict=True):
        assert torch.allclose(buffer, reference, rtol=1e-12, atol=1e-12), name


@pytest.mark.parametrize('which', ['norm', 'expand', 'project'])
@pytest.mark.parametrize('kind', [block, downsample])
def test_any_single_norm_may_be_in_eval_mode(kind, which):
    module = kind().train()
    norms = {'norm': module.norm, 'expand': module.channel_mixer[0].norm, 'project': module.channel_mixer[2].norm}
    norms[which].eval()
    x = torch.randn(2, CHANNELS if kind is block else CHANNELS // 2, 6, 5).double()
    assert worst_error(module(x), definition(copy.deepcopy(module), x)) < 1e-12


@pytest.mark.parametrize('form', ['default', 'keep_norms'])
@pytest.mark.parametrize('single', [True, False], ids=['E', 'multi'])
@pytest.mark.parametrize('kind', [block, downsample])
def test_fused(kind, single, form):
    module = kind(single).eval()
    x = torch.randn(2, CHANNELS if kind is block else CHANNELS // 2, 7, 5).double()
    fused, _ = fuse(module, form=form)
    assert worst_error(fused(x), definition(module, x)) < 1e-12
    assert count_norms(fused) == (0 if form == 'default' else 1)


def test_the_large_scale_is_shared_with_the_source():
    module = block().eval()
    fused, _ = fuse(module)
    assert fused.token_mixer.conv_l is module.token_mixer.conv_l


@pytest.mark.parametrize('kind', [block, downsample])
def test_other_norms_are_kept_by_fusing(kind):
    pytest.importorskip('mmcv')
    module = kind(norm_cfg={'type': 'GN', 'num_groups': 2}).eval()
    x = torch.randn(2, CHANNELS if kind is block else CHANNELS // 2, 7, 5).double()
    fused, report = fuse(module)
    assert worst_error(fused(x), definition(module, x)) < 1e-12
    assert report.norms_before == report.norms_after == 3


def test_drop_path_drops_whole_samples_in_training_only():
    module = block(drop_path=0.5)
    x = torch.randn(64, CHANNELS, 3, 3).double()
    dropped = (module.train()(x) == x).flatten(1).all(1)
    assert 10 < dropped.sum() < 54
    assert not (module.eval()(x) == x).flatten(1).all(1).any()
    fused, _ = fuse(module)
    assert worst_error(fused(x), module(x)) < 1e-12


def test_channels_that_four_scales_cannot_share():
    with pytest.raises(ValueError, match='divisible by 4'):
        ChunkConv.train_form(10)


def test_gradient_checkpointing_changes_nothing_but_memory():
    """Recomputed norms must not update their running statistics a second time."""
    blocks = nn.Sequential(block(), block())
    plain = Stage(downsample(), blocks).double()
    saving = copy.deepcopy(plain)
    saving.with_cp = True
    x = torch.randn(2, CHANNELS // 2, 8, 6).double().requires_grad_()
    grads = []
    for stage in (plain, saving):
        x.grad = None
        stage.train()(x).pow(2).mean().backward()
        grads.append([x.grad.clone()] + [p.grad.clone() for p in stage.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), saving.buffers(), strict=True))


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
def test_fused_branches_are_a_plain_convolution(kind, stride):
    conv, x = kind(6, stride=stride).double(), torch.randn(2, 6, 9, 7).double()
    fused, report = fuse(conv)
    assert type(fused) is nn.Conv2d
    assert report.parameters_after == sum(p.numel() for p in fused.parameters())
    assert worst_error(fused(x), conv.branches(x)) < 1e-13


@pytest.mark.parametrize(('kind', 'stride'), CASES)
def test_merging_under_autocast_rounds_once(kind, stride):
    check_merging_under_autocast_rounds_once(kind(6, stride=stride))


@pytest.mark.parametrize(('kind', 'stride'), CASES)
def test_kernels_of_the_branches_add_up_and_carry_their_sizes(kind, stride):
    conv = kind(6, stride=stride).double()
    found, whole = conv.branch_kernels(), conv.kernel()
    window = tuple(whole.weight.shape[2:])
    total = sum(embed(kernel, window).weight for kernel in found.values())
    torch.testing.assert_close(total, whole.weight, rtol=0, atol=1e-15)
    sizes = [max(map(int, name.replace(' ', 'x').removesuffix('xwide').split('x'))) for name in found]
    assert max(sizes) == window[0]


@pytest.mark.parametrize('kind', [block, downsample])
def test_a_block_stays_of_its_class_and_the_identity_stands_where_a_norm_was_folded(kind):
    module = kind().eval()
    normed, _ = fuse(module, form='keep_norms')
    fused, _ = fuse(normed)
    assert type(module) is type(normed) is type(fused)
    assert normed.norm is module.norm
    assert type(fused.norm) is nn.Identity
    for again, form in ((normed, 'keep_norms'), (fused, 'default'), (fused, 'keep_norms')):
        same, report = fuse(again, form=form)
        assert same is again
        assert not report
        assert not report.refused
