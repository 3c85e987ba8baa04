"""Layers are read instead of called only where that is the same: whatever is done to a layer takes effect."""

from __future__ import annotations

import copy
import warnings
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune

from repnext_mm import RepNeXt
from repnext_mm.models import FORMS, RepNeXtU
from repnext_mm.models.branchwise import branch_by_branch
from repnext_mm.models.heads import NormLinear, TwoHeadLinear
from repnext_mm.models.merged_conv import ConvNorm
from repnext_mm.models.mixer_forms import DenseMixer
from repnext_mm.models.repnext import CopyConv, MetaNeXtBlock
from repnext_mm.models.repnext_u import REP_UNITS, PatchMerging, PatchStem, UnitBlock
from repnext_mm.models.token_mixers import RepDWConvM
from repnext_mm.reparam import fuse
from repnext_mm.reparam.fusible import Fusible, fused_or_kept
from tests.conftest import randomize, worst_error
from tests.models.test_repnext_blocks import CHANNELS, block, downsample

TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}
NETWORKS = {
    'multi': lambda: RepNeXt(TINY),
    'single': lambda: RepNeXt({**TINY, 'token_mixer': 'single'}),
    **{unit: lambda unit=unit: RepNeXtU({'dims': (6, 12, 18, 24), 'depths': (1, 1, 1, 1)}, unit) for unit in REP_UNITS},
}
MODES = {'eval': (False, False), 'train': (True, True), 'norm_eval': (True, False)}


def network(kind: str, mode: str = 'eval') -> nn.Module:
    model = randomize(NETWORKS[kind]()).double()
    return set_mode(model, mode)


def set_mode(model: nn.Module, mode: str) -> nn.Module:
    training, norms = MODES[mode]
    model.train(training)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train(norms)
    return model


class Adapter(nn.Module):
    """A low-rank branch beside a layer; answers for the layer's attributes, as fine-tuning libraries' wrappers do."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Conv2d(layer.in_channels, 2, 1, bias=False, stride=layer.stride).to(layer.weight.dtype)
        self.up = nn.Conv2d(2, layer.out_channels, 1, bias=False).to(layer.weight.dtype)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__('layer'), name)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def doubled(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda module, args, output: 2 * output)
    return module


def doubled_before(module: nn.Module) -> nn.Module:
    module.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    return module


def replaced_forward(module: nn.Module) -> nn.Module:
    original = module.forward
    module.forward = lambda x: 2 * original(x)
    return module


def pruned(module: nn.Module) -> nn.Module:
    prune.random_unstructured(module, 'weight', 0.5)
    with torch.no_grad():
        module.weight_mask.copy_(1 - module.weight_mask)  # what is read is another weight than what will run
    return module


def weight_normed(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        nn.utils.weight_norm(module)
    with torch.no_grad():
        module.weight_g.mul_(3)
    return module


def parametrized(module: nn.Module) -> nn.Module:
    parametrizations.weight_norm(module)
    with torch.no_grad():
        module.parametrizations.weight.original0.mul_(3)
    return module


def wrapped(padding_mode: str):
    def change(module: nn.Conv2d) -> nn.Module:
        module.padding_mode = padding_mode
        module._reversed_padding_repeated_twice = [n for n in reversed(module.padding) for _ in range(2)]
        return module

    return change


ANY = {'hook': doubled, 'pre-hook': doubled_before, 'forward': replaced_forward}
OF_CONVOLUTIONS = {
    'pruned': pruned,
    'weight_norm': weight_normed,
    'parametrized': parametrized,
    'adapter': Adapter,
    'circular': wrapped('circular'),
}


def called(module: nn.Module) -> nn.Module:
    """A module whose every layer is called: what somebody counts, nobody merges."""
    for part in module.modules():
        part.register_forward_hook(lambda *_: None)
    return module


def exchange(root: nn.Module, name: str, change) -> None:
    parent, _, key = name.rpartition('.')
    setattr(root.get_submodule(parent), key, change(root.get_submodule(name)))


PARTS = {
    'block': lambda: block(),
    'E block': lambda: block(True),
    'downsample': lambda: downsample(),
    'E downsample': lambda: downsample(True),
    'unit block': lambda: randomize(UnitBlock.train_form(6, REP_UNITS['u3'](6), drop_path=0.2)).double(),
    'u1': lambda: randomize(REP_UNITS['u1'](6)).double(),
    'stem': lambda: randomize(RepNeXt(TINY).stem).double(),
    'patches': lambda: randomize(PatchStem(3, 8)).double(),
    'merging': lambda: randomize(PatchMerging(4, 8)).double(),
}


def changed(part: str, name: str, change) -> nn.Module:
    torch.manual_seed(0)
    module = PARTS[part]().eval()
    exchange(module, name, change)
    return module


def cases():
    """A hook at every layer, and the other changes at one convolution of each part; with ``slow``, all everywhere."""
    for part, build in PARTS.items():
        modules = dict(build().named_modules())
        some = next(name for name, module in modules.items() if isinstance(module, nn.Conv2d))
        for name, module in modules.items():
            for kind, change in (ANY | (OF_CONVOLUTIONS if isinstance(module, nn.Conv2d) else {})).items():
                if name:
                    marks = () if kind == 'hook' or name == some else pytest.mark.slow
                    yield pytest.param(part, name, change, id=f'{part}-{name}-{kind}', marks=marks)


@pytest.mark.parametrize(('part', 'name', 'change'), list(cases()))
def test_what_is_done_to_any_layer_takes_effect_merged_and_fused(part, name, change):
    module, definition = changed(part, name, change), called(changed(part, name, change))
    channels = next(m for m in module.modules() if isinstance(m, nn.Conv2d)).in_channels
    channels = {'block': CHANNELS, 'u1': 6, 'E downsample': CHANNELS // 2}.get(part, channels)
    x = torch.randn(2, channels, 16, 12).double()
    with torch.no_grad():
        expected = definition(x)
        assert worst_error(module(x), expected) < 1e-13
        for form in FORMS if part == 'block' else ('default', 'keep_norms', 'no_shortcut'):
            fused = fused_or_kept(module, form)
            assert worst_error(fused(x), expected) < 1e-13, form
    set_mode(module, 'norm_eval')
    set_mode(definition, 'norm_eval')
    grads = []
    for model in (module, definition):
        torch.manual_seed(0)  # drop path
        model(x).square().mean().backward()
        grads.append({key: parameter.grad for key, parameter in model.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    scale = max(grad.abs().max() for grad in grads[1].values() if grad is not None)
    for key, grad in grads[1].items():
        assert (grad is None) == (grads[0][key] is None), key
        assert grad is None or (grads[0][key] - grad).abs().max() <= 1e-13 * scale, key


def test_a_hook_keeps_a_part_but_not_what_is_beside_it():
    module = block().eval()
    doubled(module.channel_mixer[0].conv)
    fused = fused_or_kept(module, 'default')
    assert type(fused.token_mixer.conv_m) is nn.Conv2d
    assert fused.channel_mixer[0] is module.channel_mixer[0]
    assert type(fused.channel_mixer[2]) is nn.Conv2d
    assert module.not_plain() == ('channel_mixer.0.conv: it has hooks, which would not run',)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('kind', NETWORKS)
def test_every_hook_runs_and_changes_nothing(kind, mode):
    model, x = network(kind, mode), torch.randn(2, 3, 64, 64).double()
    expected, ran = copy.deepcopy(model)(x), Counter()
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, *_: ran.update([module]))
        module.register_full_backward_hook(lambda module, *_: ran.update([module]))
    levels = model(x.requires_grad_())
    assert all(worst_error(a, b) < 1e-12 for a, b in zip(levels, expected, strict=True))
    sum(level.mean() for level in levels).backward()
    modules = [m for m in model.modules() if not isinstance(m, nn.ModuleList)]
    assert all(ran[m] == 4 if isinstance(m, nn.GELU) and kind in REP_UNITS else ran[m] == 2 for m in modules)


def test_hooks_of_all_modules_see_every_layer():
    model, x, seen = network('multi'), torch.randn(1, 3, 64, 64).double(), set()
    before = model(x)
    handle = register_module_forward_hook(lambda module, *_: seen.add(module))
    try:
        after = model(x)
    finally:
        handle.remove()
    assert seen == {module for module in model.modules() if not isinstance(module, nn.ModuleList)}
    assert all(worst_error(a, b) < 1e-13 for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('kind', NETWORKS)
def test_merging_has_the_gradients_of_the_branches(kind, mode):
    model, x = network(kind, mode), torch.randn(2, 3, 64, 64).double()
    apart, grads = branch_by_branch(model), []
    for each in (model, apart):
        model.zero_grad()
        sum(level.pow(2).mean() for level in each(x)).backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    scale = max(grad.abs().max() for grad in grads[1])
    assert max((a - b).abs().max() for a, b in zip(*grads, strict=True)) < 1e-14 * scale


def test_pruned_branches_train_step_after_step_and_load_into_each_other():
    first, x = network('multi', 'train'), torch.randn(2, 3, 64, 64).double()
    for module in first.modules():
        if isinstance(module, nn.Conv2d):
            prune.l1_unstructured(module, 'weight', 0.3)
    second = network('multi', 'train')
    for module in second.modules():
        if isinstance(module, nn.Conv2d):
            prune.l1_unstructured(module, 'weight', 0.0)
    optimizer = torch.optim.SGD(first.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sum(level.square().mean() for level in first(x)).backward()
        optimizer.step()
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(first.eval()(x), second.eval()(x), strict=True))


def test_every_weight_is_quantized_in_training():
    quantization = pytest.importorskip('torch.ao.quantization')
    model = network('multi', 'train').float()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model.qconfig = quantization.get_default_qat_qconfig('x86')
        prepared = quantization.prepare_qat(model)
        prepared(torch.randn(2, 3, 64, 64))
    fakes = [m.weight_fake_quant for m in prepared.modules() if hasattr(m, 'weight_fake_quant')]
    assert len(fakes) == sum(isinstance(m, nn.Conv2d) for m in prepared.modules())
    assert all(torch.isfinite(fake.activation_post_process.min_val).all() for fake in fakes)
    assert all(fake.activation_post_process.min_val.numel() for fake in fakes)
    block = prepared.eval().stages[0].blocks[0]
    assert 'token_mixer.conv_s.conv_3_3: it has hooks, which would not run' in block.not_plain()
    kept = {id(m) for m in block.modules() if hasattr(m, 'weight_fake_quant')}
    assert kept == {id(m) for m in fused_or_kept(block, 'default').modules() if hasattr(m, 'weight_fake_quant')}


@pytest.mark.parametrize('attribute', ['stride', 'padding', 'dilation', 'padding_mode'])
def test_branches_with_another_geometry_than_they_were_built_with_run(attribute):
    module, x = RepDWConvM(4, stride=2).double(), torch.randn(1, 4, 16, 16).double()
    for conv in module.children():
        values = {'stride': (1, 1), 'padding': tuple(n + 1 for n in conv.padding), 'dilation': (1, 1)}
        if attribute == 'dilation':
            conv.dilation, conv.padding = (2, 2), tuple(2 * n for n in conv.padding)
        elif attribute == 'padding_mode':
            wrapped('reflect')(conv)
        elif attribute == 'stride':
            conv.stride = (1, 1)
        else:
            conv.padding = values[attribute] if conv.padding[0] and conv.padding[1] else conv.padding
    if attribute == 'padding':
        for conv in module.children():
            conv.padding = tuple((k - 1) // 2 for k in conv.kernel_size)
        module.conv_7_7.padding_mode = 'zeros'
        module.conv_3_5.stride = (2, 2)
        module.conv_3_5.padding = [1, 2]  # the same, but not as it was built
    torch.testing.assert_close(module(x), module.branches(x), rtol=0, atol=0)
    assert module.fused('default') is module
    assert any(reason.endswith('its geometry was changed') for reason in module.not_plain())


@pytest.mark.parametrize('kind', [NormLinear, TwoHeadLinear])
@pytest.mark.parametrize('change', ANY.values(), ids=ANY)
def test_heads_with_anything_done_to_them_stay(kind, change):
    for name, _ in kind(6, 3).named_modules():
        head = randomize(kind(6, 3)).double().eval()
        if name:
            exchange(head, name, change)
            x = torch.randn(2, 6).double()
            assert worst_error(fused_or_kept(head, 'default')(x), head(x)) < 1e-15
            assert head.not_plain()


FUSIBLE = {
    part: [name for name, module in build().named_modules() if name and isinstance(module, Fusible)]
    for part, build in PARTS.items()
}


@pytest.mark.parametrize(('part', 'name'), [(part, name) for part, names in FUSIBLE.items() for name in ('', *names)])
def test_a_subclass_with_another_forward_keeps_it(part, name):
    module, definition = PARTS[part]().eval(), PARTS[part]().eval()
    definition.load_state_dict(module.state_dict())
    for model in (module, definition):
        inner = model.get_submodule(name)
        base = type(inner)
        inner.__class__ = type('Further', (base,), {'forward': lambda self, x, base=base: 2 * base.forward(self, x)})
    channels = next(m for m in module.modules() if isinstance(m, nn.Conv2d)).in_channels
    channels = {'block': CHANNELS, 'u1': 6, 'E downsample': CHANNELS // 2}.get(part, channels)
    x = torch.randn(2, channels, 16, 12).double()
    with torch.no_grad():
        expected = called(definition)(x)
        assert worst_error(module(x), expected) < 1e-13
        for form in FORMS:
            fused, report = fuse(nn.Sequential(module), form=form)
            assert worst_error(fused(x), expected) < 1e-13, form
    assert any('its class Further overrides forward() alone' in reason for reason in report.refused)


ADDED = {
    'a layer': lambda unit: unit.add_module('observer', nn.Identity()),
    'a bias': lambda unit: setattr(unit.conv_7_w, 'bias', nn.Parameter(torch.ones(4).double())),
    'a branch less': lambda unit: setattr(unit, 'conv_5_3', nn.Identity()),
    'another branch': lambda unit: setattr(unit, 'branches', lambda x: 2 * unit.conv_7_7(x)),
}


@pytest.mark.parametrize('change', ADDED.values(), ids=ADDED)
def test_branches_that_were_changed_run(change):
    unit, x = RepDWConvM(4).double().eval(), torch.randn(1, 4, 9, 8).double()
    change(unit)
    with torch.no_grad():
        expected = unit.branches(x)
        assert torch.equal(unit(x), expected)
        fused, report = fuse(nn.Sequential(unit))
        assert torch.equal(fused(x), expected)
    assert len(report.refused) == 1


def test_a_chain_that_keeps_its_output_is_not_written_over():
    class Keeping(nn.Sequential):
        def forward(self, x):
            self.seen = super().forward(x)
            return self.seen

    model = fused_or_kept(block().eval(), 'default')
    model.channel_mixer = Keeping(*model.channel_mixer)
    x = torch.randn(1, CHANNELS, 9, 7).double()
    with torch.no_grad():
        output = model(x)
        assert worst_error(output - x, model.channel_mixer.seen) < 1e-13


@pytest.mark.parametrize('where', ['channel and token mixer', 'drop_path too'])
def test_a_replaced_layer_is_called(where):
    model = block().eval()
    model.channel_mixer[0] = nn.Sequential(model.channel_mixer[0], nn.Tanh())
    model.token_mixer.conv_s = nn.Sequential(model.token_mixer.conv_s, nn.Tanh())
    if where == 'drop_path too':
        model.drop_path = nn.Hardtanh(-0.1, 0.1)
    x = torch.randn(1, CHANNELS, 9, 7).double()
    expected = called(copy.deepcopy(model))(x)
    assert worst_error(model(x), expected) < 1e-14
    for form in FORMS:
        assert worst_error(fused_or_kept(model, form)(x), expected) < 1e-14
    assert any('is not stochastic depth' in reason for reason in model.not_plain()) == (where == 'drop_path too')


def test_what_a_hook_inside_a_kept_part_collects_stays():
    model, seen = block().eval(), []
    model.channel_mixer[2].norm.register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(1, CHANNELS, 9, 7).double()
    with torch.no_grad():
        fused_or_kept(model, 'default')(x)
        model(x)
    assert worst_error(*seen) < 1e-14


CHANGES = {
    'load_state_dict': lambda model, other: model.load_state_dict(other.state_dict()),
    'in place': lambda model, other: [a.copy_(b) for a, b in pairs(model, other)],
    'data': lambda model, other: [a.data.copy_(b.data) for a, b in pairs(model, other)],
    'new data': lambda model, other: [setattr(a, 'data', b.data.clone()) for a, b in pairs(model, other)],
    'assigned': lambda model, other: model.load_state_dict(other.state_dict(), assign=True),
}


def pairs(model: nn.Module, other: nn.Module):
    return list(zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('form', FORMS)
def test_changed_weights_count_in_every_form(form, change):
    x = torch.randn(1, 3, 64, 64).double()
    model, other = (fuse(network('multi'), form=form)[0] for _ in range(2))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model(x)  # whatever it may remember
        expected = other(x)
        CHANGES[change](model, other)
        assert all(torch.equal(a, b) for a, b in zip(model(x), expected, strict=True))
        half = copy.deepcopy(model).to(torch.bfloat16)
        assert {level.dtype for level in half(x.bfloat16())} == {torch.bfloat16}


def test_no_form_holds_tensors_that_its_state_does_not():
    dense = []
    for form in FORMS:
        fused = fuse(network('multi'), form=form)[0]
        tensors = {id(t) for t in (*fused.parameters(), *fused.buffers())}
        state = {id(t) for t in fused.state_dict(keep_vars=True).values()}
        hidden = [v for m in fused.modules() for v in vars(m).values() if isinstance(v, torch.Tensor)]
        assert tensors == state
        assert not hidden
        dense += [form for m in fused.modules() if isinstance(m, DenseMixer)]
    assert set(dense) == {'dense'}


@pytest.mark.parametrize('kind', ['multi', 'u3'])
def test_a_second_backward_pass_through_recomputed_blocks(kind):
    model, x, grads = network(kind, 'train'), torch.randn(2, 3, 64, 64).double(), []
    state = copy.deepcopy(model.state_dict())
    for with_cp in (False, True):
        model.load_state_dict(state)
        for stage in model.stages:
            stage.with_cp = with_cp
        model.zero_grad()
        loss = sum(level.square().mean() for level in model(x))
        loss.backward(retain_graph=True)
        loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()] + [b.clone() for b in model.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_hooked_norm_has_a_gradient_as_heat_maps_need_it():
    model, found = network('multi'), {}
    norm = [m for m in model.modules() if isinstance(m, _BatchNorm)][-1]
    norm.register_forward_hook(lambda module, args, output: found.update(output=output))
    norm.register_full_backward_hook(lambda module, before, after: found.update(gradient=after[0]))
    model(torch.randn(1, 3, 64, 64).double())[-1].mean().backward()
    assert found['gradient'].shape == found['output'].shape == (1, 64, 2, 2)
    assert found['gradient'].abs().max() > 0


KINDS = (ConvNorm, nn.Conv2d, nn.Sequential, CopyConv, RepDWConvM, MetaNeXtBlock)


@pytest.mark.slow
@pytest.mark.parametrize('whole', [True, False], ids=['original parameters', 'flat parameters'])
@pytest.mark.parametrize('kind', KINDS)
def test_parts_that_fully_sharded_data_parallel_wraps(kind, whole, tmp_path):
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        for mode in MODES:
            model, x = network('multi', mode), torch.randn(2, 3, 64, 64).double()
            expected = copy.deepcopy(model)(x)
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                options = {'use_orig_params': whole, 'device_id': torch.device('cpu')}
                sharded = FullyShardedDataParallel(model, auto_wrap_policy=ModuleWrapPolicy({kind}), **options)
                levels = sharded(x)
                sum(level.mean() for level in levels).backward()
            assert all(worst_error(a, b) < 1e-12 for a, b in zip(levels, expected, strict=True))
            assert all(p.grad is not None for p in sharded.parameters() if p.numel())
    finally:
        torch.distributed.destroy_process_group()
