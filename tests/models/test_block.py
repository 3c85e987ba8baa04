"""Blocks in train form, with norms folded on the fly, and fused: always the paper's formula."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from repnext_mm.models.layers import depthwise
from repnext_mm.models.repnext import ChunkConv, CopyConv, Downsample, MetaNeXtBlock, Stage
from repnext_mm.reparam import fuse
from repnext_mm.reparam.fuse import count_norms
from tests.conftest import randomise, worst_error

CHANNELS = 8


def block(single: bool = False, **options) -> MetaNeXtBlock:
    mixer = depthwise(CHANNELS, (11, 11)) if single else ChunkConv.train_form(CHANNELS)
    options = {'mlp_ratio': 2, 'norm_cfg': {'type': 'BN'}, 'act_cfg': {'type': 'GELU'}} | options
    return randomise(MetaNeXtBlock.train_form(CHANNELS, mixer, **options).double())


def downsample(single: bool = False, **options) -> Downsample:
    half = CHANNELS // 2
    mixer = depthwise(half, (7, 7), stride=(2, 2), expansion=2) if single else CopyConv.train_form(half)
    options = {'mlp_ratio': 2, 'norm_cfg': {'type': 'BN'}, 'act_cfg': {'type': 'GELU'}} | options
    return randomise(Downsample.train_form(CHANNELS, mixer, **options).double())


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
