"""Branch by branch: other convolutions, the same function of the same parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from repnext_mm import RepNeXt
from repnext_mm.models.branchwise import branch_by_branch
from repnext_mm.reparam import fuse
from tests.conftest import randomize, worst_error

TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 2, 1, 1)}


def step(model, x):
    model.zero_grad(set_to_none=True)
    outputs = model(x)
    sum(level.square().mean() for level in outputs).backward()
    return [level.detach() for level in outputs]


@pytest.mark.parametrize('token_mixer', ['multi', 'single'])
@pytest.mark.parametrize('mode', ['train', 'norm_eval', 'eval', 'with_cp'])
def test_outputs_gradients_and_statistics_are_those_of_online_merging(mode, token_mixer):
    options = {'norm_eval': mode == 'norm_eval', 'with_cp': mode == 'with_cp'}
    model = randomize(RepNeXt({**TINY, 'token_mixer': token_mixer}, **options)).double().train(mode != 'eval')
    other = copy.deepcopy(model)  # norms of both forms share their statistics: each form gets a model of its own
    apart = branch_by_branch(other)
    x = torch.randn(2, 3, 65, 97, dtype=torch.float64)
    for value, reference in zip(step(model, x), step(apart, x), strict=True):
        assert worst_error(value, reference) < 1e-12
    scale = max(parameter.grad.abs().max() for parameter in other.parameters())
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (a.grad - b.grad).abs().max() < 1e-12 * scale, name
    for (name, a), b in zip(model.named_buffers(), other.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12), name


def test_everything_is_shared_and_named_as_before():
    model = RepNeXt(TINY, norm_eval=True)
    before = [type(module) for module in model.modules()]
    apart = branch_by_branch(model)
    state, other = model.state_dict(keep_vars=True), apart.state_dict(keep_vars=True)
    assert list(state) == list(other)
    assert all(state[key] is other[key] for key in state)
    assert [type(module) for module in model.modules()] == before
    apart.train()
    assert not any(module.training for module in apart.modules() if isinstance(module, nn.BatchNorm2d))
    clone = copy.deepcopy(apart)
    x = torch.randn(1, 3, 32, 32)
    for parameter in clone.parameters():
        parameter.data.zero_()
    assert not clone(x)[3].any()  # a copy runs its own branches, not those it came from
    assert apart(x)[3].any()


def test_every_branch_is_a_convolution_of_its_own():
    def convolutions(model):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, 64, 64, device='meta'))
        return counter.get_total_flops()

    with torch.device('meta'):
        model = RepNeXt(TINY).eval()
    assert convolutions(branch_by_branch(model)) > convolutions(model)
    assert sum(isinstance(module, nn.Conv2d) for module in branch_by_branch(model).modules()) == sum(
        isinstance(module, nn.Conv2d) for module in model.modules()
    )


def test_nothing_to_take_apart():
    fused = fuse(RepNeXt(TINY).eval())[0]
    assert branch_by_branch(fused) is fused
    resnet = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    assert branch_by_branch(resnet) is resnet
