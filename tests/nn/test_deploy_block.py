"""What the deploy form writes over is never read again: inputs, gradients and captured graphs are safe."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repnext_mm import RepNeXt
from repnext_mm.nn import FusedBlock, FusedDownsample
from repnext_mm.nn.layers import OverwritingGELU, may_overwrite, overwriting
from repnext_mm.reparam import fuse
from tests.conftest import randomise, worst_error

TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}


@pytest.fixture(scope='module')
def train_form() -> RepNeXt:
    torch.manual_seed(0)
    return randomise(RepNeXt(TINY)).double().eval()


@pytest.fixture(scope='module')
def deploy(train_form) -> nn.Module:
    return fuse(train_form)[0]


def parts(deploy: nn.Module) -> list[nn.Module]:
    return [m for m in deploy.modules() if isinstance(m, FusedBlock | FusedDownsample)]


def test_inputs_of_blocks_stay_as_they_are(deploy):
    assert len(parts(deploy)) == 7
    for part in parts(deploy):
        first = next(m for m in part.modules() if isinstance(m, nn.Conv2d))
        channels = sum(c.in_channels for c in (part.token_mixer.conv_s,)) * (4 if isinstance(part, FusedBlock) else 1)
        x = torch.randn(2, channels, 12, 9, dtype=first.weight.dtype)
        before = x.clone()
        with torch.inference_mode():
            once, again = part(x), part(x)
        assert torch.equal(x, before)
        assert torch.equal(once, again)


def test_the_image_and_earlier_levels_stay_as_they_are(deploy, train_form):
    x = torch.randn(2, 3, 65, 97).double()
    before = x.clone()
    with torch.no_grad():
        outputs, expected = deploy(x), train_form(x)
    assert torch.equal(x, before)
    assert all(worst_error(a, b) < 1e-12 for a, b in zip(outputs, expected, strict=True))


def test_gradients_of_the_image_are_those_of_the_train_form(deploy, train_form):
    x = torch.randn(1, 3, 64, 64).double()
    found = []
    for model in (deploy, train_form):
        image = x.clone().requires_grad_()
        sum(level.square().sum() for level in model(image)).backward()
        found.append(image.grad)
    assert worst_error(*found) < 1e-12


def test_a_half_precision_branch_does_not_round_the_shortcut(deploy):
    block = next(part for part in parts(deploy) if isinstance(part, FusedBlock))

    class Halved(nn.Module):
        def forward(self, x):
            return x.to(torch.bfloat16)

    mixed = FusedBlock(nn.Identity(), nn.Sequential(nn.Identity(), nn.Identity(), Halved()))
    x = torch.randn(1, block.token_mixer.conv_s.in_channels * 4, 5, 5)
    assert mixed(x).dtype == torch.float32


def test_only_exact_gelu_modules_are_replaced():
    layers = nn.Sequential(nn.Conv2d(1, 1, 1), nn.GELU('tanh'), nn.ReLU())
    new = overwriting(layers)
    assert isinstance(new[1], OverwritingGELU)
    assert new[1].approximate == 'tanh'
    assert new[2] is layers[2]
    x = torch.randn(3, 4)
    assert torch.equal(new[1](x.clone()), layers[1](x))


def test_gelu_overwrites_only_what_it_may():
    x = torch.randn(4)
    assert may_overwrite(x)
    assert OverwritingGELU()(x) is x
    leaf = torch.randn(4, requires_grad=True)
    assert OverwritingGELU()(leaf * 1).requires_grad
    traced = torch.jit.trace(OverwritingGELU(), torch.randn(4))
    assert 'gelu_' not in str(traced.graph)
