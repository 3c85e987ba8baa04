"""bfloat16 on a CPU: every task trains, and what clips and accumulates is what does so in float32."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from torch import nn

from repnext_mm import RepNeXt
from repnext_mm.models.merged_conv import MergedBranches
from repnext_mm.training import bfloat16
from repnext_mm.training.bfloat16 import trains_faster
from tests.hooks.tiny_run import ARCH
from tests.training.tiny_tasks import TASKS, build, losses_of

SGD = dict(type='SGD', lr=1.0)


class Net(BaseModel):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 36, 2)

    def forward(self, inputs, data_samples=None, mode='loss'):
        self.seen = self.head(self.norm(self.conv(inputs)).flatten(1))
        return dict(loss=self.seen.float().square().mean())


def images(seed):
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings('ignore:torch.meshgrid')
@pytest.mark.parametrize('task', TASKS)
def test_a_step_of_every_task(task):
    pytest.importorskip('mmcv.ops')
    model, batch = build(task)
    with torch.no_grad():
        expected, _ = losses_of(copy.deepcopy(model), batch)
    before = copy.deepcopy(model.state_dict())
    wrapper = build_optim_wrapper(
        model, dict(type='Bfloat16OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4), clip_grad=dict(max_norm=1.0))
    )
    for step in range(2):
        with wrapper.optim_context(model):
            total, named = losses_of(model, batch)
        assert all(torch.isfinite(value) for value in named.values())
        if step == 0:
            assert total.item() == pytest.approx(expected.item(), rel=0.02)
        wrapper.update_params(total)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert len(changed) > 50
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


OPTIONS = {
    'plain': dict(type='Bfloat16OptimWrapper'),
    'clipped': dict(type='Bfloat16OptimWrapper', clip_grad=dict(max_norm=0.01)),
    'clipped adaptively': dict(type='AdaptiveClipBfloat16OptimWrapper', clip_grad=dict(clip_factor=0.02)),
}


@pytest.mark.parametrize('count', [1, 3])
@pytest.mark.parametrize('name', OPTIONS)
def test_gradients_are_scaled_clipped_and_accumulated_as_in_float32(name, count):
    """The oracle computes the same bfloat16 gradients, and clips and steps by hand."""
    from timm.utils.agc import adaptive_clip_grad

    model = Net()
    expected = copy.deepcopy(model)
    for seed in range(count):
        with torch.autocast('cpu', torch.bfloat16):
            loss = expected(images(seed))['loss']
        (loss / count).backward()
    if name == 'clipped':
        nn.utils.clip_grad_norm_(expected.parameters(), 0.01)
    elif name == 'clipped adaptively':
        adaptive_clip_grad(expected.parameters(), clip_factor=0.02)
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter -= parameter.grad

    wrapper = build_optim_wrapper(model, dict(OPTIONS[name], optimizer=SGD, accumulative_counts=count))
    for seed in range(count):
        model.train_step(dict(inputs=images(seed)), wrapper)
    assert model.seen.dtype == torch.bfloat16
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert not hasattr(wrapper, 'loss_scaler')


def test_kernels_are_merged_in_float32():
    """RepNeXt rounds the merged kernel once; merged in bfloat16, the sum of branches would be rounded at each step."""
    backbone = RepNeXt(ARCH)
    block = next(module for module in backbone.modules() if isinstance(module, MergedBranches))
    wrapper = build_optim_wrapper(backbone, dict(type='Bfloat16OptimWrapper', optimizer=SGD))
    with wrapper.optim_context(backbone):
        assert {t.dtype for t in block.kernel() if t is not None} == {torch.float32}
        features = backbone(torch.randn(2, 3, 64, 64))
        assert {f.dtype for f in features} <= {torch.bfloat16, torch.float32}
        loss = sum(f.float().square().mean() for f in features)
    wrapper.update_params(loss)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in backbone.parameters())


def test_outside_of_a_step_nothing_is_cast():
    model = Net()
    wrapper = build_optim_wrapper(model, dict(type='Bfloat16OptimWrapper', optimizer=SGD))
    model.train_step(dict(inputs=images(0)), wrapper)
    model(images(0))
    assert model.seen.dtype == torch.float32


def test_float32_clips_otherwise():
    """The oracle of the tests above tells bfloat16 from float32."""
    model = Net()
    in_float32 = copy.deepcopy(model)
    wrapper = build_optim_wrapper(model, dict(type='Bfloat16OptimWrapper', optimizer=SGD))
    model.train_step(dict(inputs=images(0)), wrapper)
    plain = build_optim_wrapper(in_float32, dict(type='OptimWrapper', optimizer=SGD))
    in_float32.train_step(dict(inputs=images(0)), plain)
    assert not torch.equal(model.head.weight, in_float32.head.weight)


def test_large_depthwise_kernels_get_their_gradients_in_float32(monkeypatch):
    torch.manual_seed(0)
    network = RepNeXt(ARCH)
    network.train()
    computed, original = [], F.conv2d

    def conv2d(x, weight, *rest):
        computed.append((tuple(weight.shape[1:]), torch.is_autocast_enabled('cpu'), x.dtype))
        return original(x, weight, *rest)

    monkeypatch.setattr(F, 'conv2d', conv2d)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        levels = network(torch.randn(2, 3, 64, 64))
    assert {found[1:] for found in computed if found[0] == (1, 7, 7)} == {(False, torch.float32)}
    assert {autocast for shape, autocast, _ in computed if max(shape[1:]) <= 3} == {True}
    assert {level.dtype for level in levels} == {torch.bfloat16}


def test_faster_where_it_was_measured(monkeypatch):
    monkeypatch.setattr(bfloat16, 'get_device', lambda: 'cpu')
    for has_amx in (True, False):
        monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda found=has_amx: found, raising=False)
        assert trains_faster() == has_amx
    monkeypatch.setattr(bfloat16, 'get_device', lambda: 'cuda')
    assert not trains_faster()
    monkeypatch.setattr(bfloat16, 'get_device', lambda: 'cpu')
    monkeypatch.delattr(torch.cpu, '_is_amx_tile_supported')  # torch before 2.6
    assert not trains_faster()
