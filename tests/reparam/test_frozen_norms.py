"""Frozen batch norms fold and count, whatever library they come from; what only looks like one does not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repnext_mm.reparam import fuse, relative_error
from repnext_mm.reparam.fuse import count_norms
from repnext_mm.reparam.kernel import is_frozen

EXACT = 1e-12


class FrozenBatchNorm2d(nn.Module):
    """As in several detection libraries: statistics are buffers, and the forward depends on what needs a gradient."""

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.num_features, self.eps = channels, eps
        for name in ('weight', 'bias', 'running_mean', 'running_var'):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x):
        if x.requires_grad:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class WithoutEps(FrozenBatchNorm2d):
    """The name of a library that writes the constant down in its forward."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        del self.eps

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale.reshape(1, -1, 1, 1) + (self.bias - self.running_mean * scale).reshape(1, -1, 1, 1)


class FrozenBatchNormWithMore(FrozenBatchNorm2d):
    def forward(self, x):
        return super().forward(x).clamp(-0.1, 0.1)


WithoutEps.__name__ = 'FrozenBatchNorm2d'


def library(module: str, name: str) -> object:
    return lambda channels: getattr(pytest.importorskip(module), name)(channels)


KINDS = {
    'own': FrozenBatchNorm2d,
    'constant': WithoutEps,
    'torchvision': library('torchvision.ops', 'FrozenBatchNorm2d'),
    'timm': library('timm.layers', 'FrozenBatchNormAct2d'),
}


def randomized(model: nn.Module) -> nn.Module:
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 1.5) if 'var' in name else nn.init.normal_(buffer)
    return model.double().eval()


@pytest.mark.parametrize('kind', KINDS)
def test_they_fold_and_count(kind):
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), KINDS[kind](4), nn.Conv2d(4, 4, 3)))
    fused, report = fuse(model)
    assert (report.norms_before, report.norms_after, count_norms(fused)) == (1, 0, 0)
    assert max(relative_error(fused, model, torch.randn(2, 3, 6, 5).double())) < EXACT
    model.train()
    assert count_norms(model) == 1


def test_they_fold_forward_too():
    model = randomized(nn.Sequential(nn.ReLU(), FrozenBatchNorm2d(4), nn.Conv2d(4, 4, 2)))
    fused, report = fuse(model)
    assert report.norms_after == 0
    assert max(relative_error(fused, model, torch.randn(2, 4, 6, 5).double())) < EXACT


def test_the_name_alone_does_not_do():
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNormWithMore(4)))
    assert not is_frozen(model[1])
    fused, report = fuse(model)
    assert fused is model
    assert (report.norms_before, report.norms_after) == (1, 1)


def test_one_without_numbers_decides_nothing_for_its_class():
    class FrozenBatchNorm2d(WithoutEps):
        pass

    with torch.device('meta'):
        assert not is_frozen(FrozenBatchNorm2d(4))
    assert is_frozen(FrozenBatchNorm2d(4))


def test_a_frozen_timm_model():
    timm = pytest.importorskip('timm')
    model = timm.create_model('resnet18', num_classes=3)
    timm.utils.freeze(model)
    randomized(model)
    fused, report = fuse(model)
    assert (report.norms_before, report.norms_after) == (20, 0)
    assert max(relative_error(fused, model, torch.randn(1, 3, 64, 64).double())) < EXACT
