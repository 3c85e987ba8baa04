"""A model trains and tests in channels_last as it does contiguous, and everything that follows it keeps the format."""

from __future__ import annotations

import copy
import socket
import warnings

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import MMDistributedDataParallel
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from repnext_mm.errors import UserError
from repnext_mm.hooks import FuseBackboneHook, MemoryFormatHook, StrictLoadHook
from repnext_mm.hooks.memory_format import align_state, convert
from repnext_mm.reparam import fuse
from tests.conftest import worst_error
from tests.hooks.tiny_run import make_runner
from tests.training.tiny_tasks import TASKS, build, losses_of

LAST = torch.channels_last


def laid_out(tensors):
    """Those of four dimensions that only channels_last describes, and those that only contiguous describes."""
    known = [t for t in tensors if t.dim() == 4]
    return (
        sum(t.is_contiguous(memory_format=LAST) and not t.is_contiguous() for t in known),
        sum(t.is_contiguous() and not t.is_contiguous(memory_format=LAST) for t in known),
    )


def dense_weights(model):
    return laid_out(model.parameters())


def gradients_of(model, batch, dtype):
    total, losses = losses_of(model, batch, dtype)
    total.backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def distance(one, other):
    """The largest difference of two sets of gradients, relative to the largest gradient."""
    assert one.keys() == other.keys()
    scale = max(gradient.abs().max() for gradient in other.values())
    return float(max((one[name] - other[name]).abs().max() for name in one) / scale)


CASES = {  # dtype, whether norms take their running statistics, bounds of losses and of gradients
    'float64': (torch.float64, False, 1e-10, 1e-10),
    'float32, norms in eval mode': (torch.float32, True, 1e-5, 1e-5),
    # torch sums up a channels_last batch in float32, a contiguous one in float64: its statistics differ by 1e-6 to 1e-5
    # on a CPU, which two images and random weights multiply
    'float32': (torch.float32, False, 1e-5, 2e-3),
}


@pytest.mark.filterwarnings('ignore:torch.meshgrid')
@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('task', TASKS)
def test_a_step_of_every_task(task, case):
    pytest.importorskip('mmcv.ops')
    dtype, frozen, of_losses, of_gradients = CASES[case]
    if task == 'Mask R-CNN' and dtype == torch.float64:
        pytest.skip("mmcv's compiled NMS takes float32 only; its RoIAlign is tested below")
    model, batch = build(task)
    model = model.to(dtype)
    for module in model.modules():
        if frozen and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    other = copy.deepcopy(model)
    assert convert(other, 'channels_last') > 0
    losses, gradients = gradients_of(model, batch, dtype)
    losses_last, gradients_last = gradients_of(other, batch, dtype)
    for name, value in losses.items():
        torch.testing.assert_close(losses_last[name], value, rtol=of_losses, atol=of_losses)
    assert distance(gradients_last, gradients) < of_gradients
    after = max(of_losses, of_gradients / 20)
    for network in (model, other):
        torch.optim.SGD(network.parameters(), lr=1e-3).step()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=after, atol=after)
    assert dense_weights(other)[1] == 0
    assert laid_out(gradients_last.values()) == dense_weights(other)


@pytest.mark.filterwarnings('ignore:torch.meshgrid')
@pytest.mark.parametrize('task', TASKS)
def test_features_stay_in_it(task):
    """No layer of the backbone, the neck or a head turns the layout back: what does so copies every feature twice."""
    pytest.importorskip('mmcv.ops')
    model, batch = build(task)
    convert(model, 'channels_last')
    turned = []

    def look(name):
        def hook(module, args, output):
            if isinstance(output, torch.Tensor) and output.dim() == 4 and laid_out([output])[1]:
                turned.append(name)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.modules.batchnorm._BatchNorm | nn.GroupNorm):
            module.register_forward_hook(look(name))
    losses_of(model, batch)
    assert turned == []


@pytest.mark.parametrize('given', ['by position', 'by keyword'])
def test_compiled_operators_read_contiguous_features(given):
    """mmcv's compiled RoIAlign misreads channels_last on a CPU."""
    ops = pytest.importorskip('mmcv.ops')
    layer = ops.RoIAlign(7, sampling_ratio=2)
    model = nn.ModuleDict({'roi': layer, 'conv': nn.Conv2d(3, 8, 3)}).double()
    features = torch.randn(2, 8, 20, 24, dtype=torch.float64)
    rois = torch.tensor([[0, 1, 1, 15, 12], [1, 3, 2, 20, 18]], dtype=torch.float64)
    expected = layer(features, rois)
    convert(model, 'channels_last')
    convert(model, 'channels_last')
    assert len(layer._forward_pre_hooks) == 1
    last = features.contiguous(memory_format=LAST).requires_grad_()
    pooled = layer(last, rois) if given == 'by position' else layer(input=last, rois=rois)
    assert torch.equal(pooled, expected)
    pooled.square().sum().backward()
    plain = features.clone().requires_grad_()
    layer(plain, rois).square().sum().backward()
    torch.testing.assert_close(last.grad, plain.grad, rtol=0, atol=1e-12)


def test_operators_with_weights_keep_them_contiguous():
    ops = pytest.importorskip('mmcv.ops')
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), ops.ModulatedDeformConv2dPack(4, 6, 3, padding=1))
    x = torch.randn(1, 3, 9, 8)
    expected = model(x)
    assert convert(model, 'channels_last') == 1
    assert dense_weights(model[1])[0] == 0
    assert worst_error(model(x), expected) < 1e-5


def train(folder, hooks, **options):
    runner = make_runner(folder, hooks=hooks, **options)
    runner.train()
    return runner


def test_kept_through_averaging_training_and_resuming(tmp_path):
    ema = dict(type='EMAHook', momentum=0.1)
    runner = train(tmp_path, [dict(type='MemoryFormatHook'), ema], length=2)
    average = next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model
    state = runner.optim_wrapper.optimizer.state
    moments = [value for part in state.values() for value in part.values() if isinstance(value, torch.Tensor)]
    for tensors in (runner.model.parameters(), average.parameters(), moments):
        last, contiguous = laid_out(tensors)
        assert last > 0
        assert contiguous == 0


@pytest.mark.parametrize(('first', 'then'), [('contiguous', 'channels_last'), ('channels_last', 'contiguous')])
def test_a_checkpoint_of_the_other_format_is_resumed(first, then, tmp_path):
    train(tmp_path, [dict(type='MemoryFormatHook', memory_format=first)], length=1)
    runner = train(tmp_path, [dict(type='MemoryFormatHook', memory_format=then)], length=2, resume=True)
    assert runner.iter == 4
    optimizer = runner.optim_wrapper.optimizer
    for parameter, part in optimizer.state.items():
        for value in part.values():
            assert not isinstance(value, torch.Tensor) or value.dim() == 0 or value.stride() == parameter.stride()
    last, contiguous = dense_weights(runner.model)
    assert (last > 0, contiguous > 0) == (then == 'channels_last', then == 'contiguous')


def test_fused_optimizers_get_state_as_the_weights_lie():
    """torch 2.11: a fused AdamW whose moments lie otherwise than the weight steps elsewhere, without an error."""

    def stepped(*, turned):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(8, 6, 3, 3).contiguous(memory_format=LAST))
        try:
            optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
        except RuntimeError:
            pytest.skip('this torch has no fused AdamW on a CPU')
        for step in range(2):
            weight.grad = torch.randn(8, 6, 3, 3).contiguous(memory_format=LAST)
            if step and turned:
                saved = copy.deepcopy(optimizer.state_dict())
                for name in ('exp_avg', 'exp_avg_sq'):
                    saved['state'][0][name] = saved['state'][0][name].contiguous()
                optimizer.load_state_dict(saved)
                align_state(optimizer)
            optimizer.step()
        return weight.detach()

    assert torch.equal(stepped(turned=True), stepped(turned=False))


def test_tested_fused(tmp_path):
    hooks = [dict(type='MemoryFormatHook'), dict(type='FuseBackboneHook')]
    model = make_runner(tmp_path, hooks=hooks).model
    convert(model, 'channels_last')
    model.eval()
    fused, report = FuseBackboneHook().fuse_backbone(model)
    assert report
    last, contiguous = dense_weights(fused.backbone)
    assert last > 0
    assert contiguous == 0


def test_fused_weights_become_a_deploy_form_of_the_format(tmp_path):
    source = make_runner(tmp_path / 'source').model
    source.eval()
    fused, _ = fuse(source.backbone)
    state = {f'backbone.{key}': value for key, value in fused.state_dict().items()}
    state |= {f'head.{key}': value for key, value in source.head.state_dict().items()}
    torch.save({'state_dict': state}, tmp_path / 'fused.pth')
    runner = make_runner(tmp_path / 'test', hooks=[MemoryFormatHook(), StrictLoadHook(testing=True)])
    runner.call_hook('before_run')
    runner._load_from = str(tmp_path / 'fused.pth')
    runner.load_or_resume()
    runner.call_hook('before_test')
    assert next(runner.model.backbone.parameters()).dim() == 4
    last, contiguous = dense_weights(runner.model)
    assert last > 0
    assert contiguous == 0


@pytest.mark.parametrize('way', ['traced', pytest.param('exported', marks=pytest.mark.slow)])
def test_exported_from_it(way, tmp_path):
    backbone = make_runner(tmp_path).model.backbone.eval()
    x = torch.randn(1, 3, 32, 32)
    expected = [level.detach() for level in backbone(x)]
    convert(backbone, 'channels_last')
    graph = torch.jit.trace(backbone, x) if way == 'traced' else torch.export.export(backbone, (x,)).module()
    for level, reference in zip(graph(x), expected, strict=True):
        assert worst_error(level, reference) < 1e-5


def test_data_parallel_buckets_are_made_for_it(monkeypatch):
    """A wrapper that measured contiguous strides would copy every gradient, and warn of it."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    for key, value in dict(RANK=0, WORLD_SIZE=1, LOCAL_RANK=0, MASTER_ADDR='127.0.0.1', MASTER_PORT=port).items():
        monkeypatch.setenv(key, str(value))
    torch.distributed.init_process_group('gloo')
    try:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
        wrapper = MMDistributedDataParallel(model, device_ids=None, find_unused_parameters=True)
        reducer = wrapper.reducer
        runner = type('Runner', (), {'model': wrapper})
        MemoryFormatHook().before_run(runner)
        assert wrapper.reducer is not reducer
        assert dense_weights(wrapper) == (2, 0)
        del reducer
        reference = copy.deepcopy(model)
        x = torch.randn(2, 3, 12, 12)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            wrapper(x).square().mean().backward()
        reference(x).square().mean().backward()
        for one, other in zip(model.parameters(), reference.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)
        kept = wrapper.reducer
        MemoryFormatHook().before_run(runner)
        assert wrapper.reducer is kept
    finally:
        torch.distributed.destroy_process_group()


def test_shards_are_refused():
    class Sharded(FullyShardedDataParallel):
        training_state = None  # of a wrapper that exchanges nothing

        def __init__(self):
            nn.Module.__init__(self)
            self._fsdp_wrapped_module = nn.Linear(2, 2)

    runner = type('Runner', (), {'model': Sharded()})
    with pytest.raises(UserError, match='cannot be kept by FSDP.*or --memory-format contiguous'):
        MemoryFormatHook().before_run(runner)
    MemoryFormatHook('contiguous').before_run(runner)


def test_refuses_what_is_not_a_format():
    with pytest.raises(UserError, match="memory_format='nhwc' is unknown: choose one of channels_last, contiguous"):
        MemoryFormatHook('nhwc')
