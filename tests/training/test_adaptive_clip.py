"""Adaptive clipping does what timm's own function does, once per step."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from timm.utils.agc import adaptive_clip_grad
from torch import nn

SGD = {'type': 'SGD', 'lr': 1.0}


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))


def loss_of(model, seed=0):
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return 100 * model(x).square().mean()


def by_timm(model, *, seeds, clip):
    expected = copy.deepcopy(model)
    for seed in seeds:
        (loss_of(expected, seed) / len(seeds)).backward()
    if clip:
        adaptive_clip_grad(expected.parameters(), clip_factor=0.02)
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter -= parameter.grad
    return expected


def same(model, expected):
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize('count', [1, 3])
def test_a_step_is_that_of_timm(count):
    model = network()
    expected, unclipped = (by_timm(model, seeds=range(count), clip=clip) for clip in (True, False))
    wrapper = build_optim_wrapper(
        model,
        {
            'type': 'AdaptiveClipOptimWrapper',
            'optimizer': SGD,
            'clip_grad': {'clip_factor': 0.02},
            'accumulative_counts': count,
        },
    )
    before = copy.deepcopy(model)
    for seed in range(count):
        assert same(model, before)  # nothing moves before all gradients are there
        wrapper.update_params(loss_of(model, seed))
    assert same(model, expected)
    assert not same(model, unclipped)


def test_mixed_precision_unscales_before_it_clips(monkeypatch):
    """There is no GPU here: the scaler is a stand-in that records the order and multiplies by 1024."""
    from mmengine.optim.optimizer import amp_optimizer_wrapper

    calls = []

    class Scaler:
        def scale(self, loss):
            return loss * 1024

        def unscale_(self, optimizer):
            calls.append('unscale')
            for group in optimizer.param_groups:
                for parameter in group['params']:
                    parameter.grad /= 1024

        def step(self, optimizer):
            calls.append('step')
            optimizer.step()

        def update(self, scale):
            calls.append('update')

    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', Scaler)
    model = network()
    expected = by_timm(model, seeds=[0], clip=True)
    wrapper = build_optim_wrapper(
        model, {'type': 'AdaptiveClipAmpOptimWrapper', 'optimizer': SGD, 'clip_grad': {'clip_factor': 0.02}}
    )
    wrapper.update_params(loss_of(model))
    assert calls == ['unscale', 'step', 'update']
    assert same(model, expected)


@pytest.mark.parametrize('clip_grad', [{'clip_factor': 0}, {'max_norm': 1.0}, {'eps': float('nan')}])
def test_refuses_what_clips_nothing(clip_grad):
    with pytest.raises(ValueError, match='clips nothing adaptively'):
        build_optim_wrapper(network(), {'type': 'AdaptiveClipOptimWrapper', 'optimizer': SGD, 'clip_grad': clip_grad})
