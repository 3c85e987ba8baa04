"""What the deploy form writes over is never read again: inputs, gradients and captured graphs are safe."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from repnext_mm import RepNeXt
from repnext_mm.models import FORMS
from repnext_mm.models.layers import may_overwrite, overwriting
from repnext_mm.models.repnext import Downsample, MetaNeXtBlock
from repnext_mm.reparam import fuse
from tests.conftest import randomize, worst_error

TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}


@pytest.fixture(scope='module')
def train_form() -> RepNeXt:
    torch.manual_seed(0)
    return randomize(RepNeXt(TINY)).double().eval()


@pytest.fixture(scope='module')
def deploy(train_form) -> nn.Module:
    return fuse(train_form)[0]


def parts(deploy: nn.Module) -> list[nn.Module]:
    return [m for m in deploy.modules() if isinstance(m, MetaNeXtBlock | Downsample)]


def test_inputs_of_blocks_stay_as_they_are(deploy):
    assert len(parts(deploy)) == 7
    for part in parts(deploy):
        first = next(m for m in part.modules() if isinstance(m, nn.Conv2d))
        channels = sum(c.in_channels for c in (part.token_mixer.conv_s,)) * (
            4 if isinstance(part, MetaNeXtBlock) else 1
        )
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
    block = next(part for part in parts(deploy) if isinstance(part, MetaNeXtBlock))

    class Halved(nn.Module):
        def forward(self, x):
            return x.to(torch.bfloat16)

    mixed = MetaNeXtBlock(nn.Identity(), nn.Identity(), nn.Sequential(nn.Identity(), nn.Identity(), Halved()))
    x = torch.randn(1, block.token_mixer.conv_s.in_channels * 4, 5, 5)
    assert mixed(x).dtype == torch.float32


@pytest.mark.parametrize('act', [nn.GELU(), nn.GELU('tanh'), nn.ReLU()], ids=str)
def test_only_a_gelu_overwrites_and_it_stays_itself(act, monkeypatch):
    layers = overwriting(nn.Sequential(nn.Conv2d(4, 4, 1), act))
    layers[0].requires_grad_(False)
    x = torch.randn(1, 4, 3, 3)
    made, original = [], nn.functional.conv2d
    monkeypatch.setattr('torch.nn.functional.conv2d', lambda *args: made.append(original(*args)) or made[-1])
    out = layers(x)
    assert torch.equal(out, act(layers[0](x)))
    assert (out.data_ptr() == made[0].data_ptr()) == isinstance(act, nn.GELU)


def test_what_may_be_overwritten():
    x, conv = torch.randn(4), nn.Conv2d(1, 1, 1)
    assert may_overwrite(x, conv)
    assert may_overwrite(x, nn.Sequential(nn.ReLU(), conv))
    assert not may_overwrite(x, None)
    assert not may_overwrite(x, nn.Sequential(conv, nn.Identity()))  # which may return the input
    assert not may_overwrite(torch.randn(4, requires_grad=True), conv)
    traced = torch.jit.trace(overwriting(nn.Sequential(nn.Conv2d(4, 4, 1), nn.GELU())), torch.randn(1, 4, 3, 3))
    assert 'gelu_' not in str(traced.inlined_graph)
    conv.register_forward_hook(lambda *_: None)
    assert not may_overwrite(x, conv)
    assert not may_overwrite(x, nn.Sequential(nn.ReLU(), conv))


@pytest.mark.parametrize('where', ['layers', 'all modules'])
@pytest.mark.parametrize('form', FORMS)
def test_what_hooks_collect_is_what_the_layers_returned(train_form, form, where):
    deploy, image, seen, copies = fuse(train_form, form=form)[0], torch.randn(1, 3, 64, 64).double(), [], []

    def collect(module, args, output):
        seen.append(output)
        copies.append(copy.deepcopy(output))

    kinds = (nn.Conv2d, nn.GELU, nn.Sequential)
    layers = [m for m in deploy.modules() if isinstance(m, kinds)]
    handles = (
        [m.register_forward_hook(collect) for m in layers]
        if where == 'layers'
        else [register_module_forward_hook(collect)]
    )
    with torch.inference_mode():
        hooked = deploy(image)
    for handle in handles:
        handle.remove()
    assert len(seen) >= len(layers)
    flat = [pair for pair in zip(seen, copies, strict=True) if isinstance(pair[0], torch.Tensor)]
    assert all(torch.equal(output, kept) for output, kept in flat)
    with torch.inference_mode():
        assert all(worst_error(a, b) < 1e-14 for a, b in zip(deploy(image), hooked, strict=True))
