"""RepNeXtU: published numbers, exact fusing with and without shortcuts, OpenMMLab's backbone contract."""

from __future__ import annotations

import re
from functools import cache, partial

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from repnext_mm.lab.bench.complexity import count_macs
from repnext_mm.models.repnext_u import (
    REP_UNITS,
    UNIT_ARCHITECTURES,
    PatchMerging,
    PatchStem,
    RepNeXtU,
    UnitArch,
    UnitBlock,
)
from repnext_mm.reparam import fuse
from repnext_mm.reparam.fuse import count_norms, count_parameters
from tests.conftest import randomize, worst_error
from tests.models.backbones import (
    check_merging_under_autocast_rounds_once,
    check_norm_eval_trains_as_norms_that_run,
    check_recomputing_gives_the_same_step,
    norms_that_run,
)

TINY = {'dims': (6, 12, 24, 48), 'depths': (1, 1, 4, 1)}

# Facts E3, classifiers with 1000 classes: parameters (train, without shortcuts), GMACs at 224x224 (the same)
PUBLISHED = {
    'tiny': (28_984_936, 51_547_720, 4.47, 8.20),
    'small': (51_034_216, 92_093_512, 8.71, 16.14),
    'base': (89_672_168, 162_739_304, 15.39, 28.53),
}
KEPT = {'tiny': 28_566_184, 'small': 50_180_008, 'base': 88_533_224}  # ours: fused with shortcuts


@cache
def published_form(arch: str, form: str) -> nn.Module:
    """A backbone in eval mode on the meta device."""
    if form != 'train':
        return fuse(published_form(arch, 'train'), form=form)[0]
    with torch.device('meta'):
        return RepNeXtU(arch).eval()


def by_definition(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Every branch and every norm run apart: otherwise both forms would merge by the same code."""
    with norms_that_run('repnext_u', 'merged_conv'), torch.no_grad():
        return model(x)


def worst(outputs: tuple[torch.Tensor, ...], references: tuple[torch.Tensor, ...]) -> float:
    return max(worst_error(a, b) for a, b in zip(outputs, references, strict=True))


def head(arch: str) -> int:
    return (UNIT_ARCHITECTURES[arch].dims[3] + 1) * 1000


@pytest.mark.parametrize('arch', PUBLISHED)
def test_published_parameter_counts(arch):
    """The authors' train form also holds the 7x7 that is to come, with its bias, and never runs it."""
    train, eliminated = PUBLISHED[arch][:2]
    dims, depths = UNIT_ARCHITECTURES[arch].dims, UNIT_ARCHITECTURES[arch].depths
    never_run = sum(50 * width * depth for width, depth in zip(dims, depths, strict=True))
    assert count_parameters(published_form(arch, 'train')) + never_run + head(arch) == train
    assert count_parameters(published_form(arch, 'no_shortcut')) + head(arch) == eliminated
    assert count_parameters(published_form(arch, 'default')) + head(arch) == KEPT[arch]


@pytest.mark.parametrize('arch', PUBLISHED)
def test_published_macs(arch):
    image = torch.empty(1, 3, 224, 224, device='meta')

    def gmacs(form: str) -> float:
        return (count_macs(lambda: published_form(arch, form)(image)) + head(arch) - 1000) / 1e9

    assert round(gmacs('no_shortcut'), 2) == PUBLISHED[arch][3]
    assert gmacs('train') == gmacs('default') < PUBLISHED[arch][2]  # merged on the fly
    with norms_that_run('repnext_u', 'merged_conv'):  # as in training, where the branches run
        assert round(gmacs('train'), 2) == PUBLISHED[arch][2]


@pytest.mark.parametrize('arch', PUBLISHED)
@pytest.mark.parametrize('form', ['default', 'no_shortcut'])
def test_no_norm_is_left(arch, form):
    assert count_norms(published_form(arch, form)) == 0


BN = r'(weight|bias|running_mean|running_var|num_batches_tracked)'
KEYS = {
    'train': rf'downsample_layers\.0\.(0\.weight|1\.{BN})|downsample_layers\.[123]\.(0\.{BN}|1\.(weight|bias))'
    rf'|stages\.\d\.\d+\.(feature\.(dwconv[123]\.weight|norm[123]\.{BN})|pwconv[12]\.(weight|bias))',
    'default': r'downsample_layers\.\d\.(weight|bias)|stages\.\d\.\d+\.(feature|pwconv[12])\.(weight|bias)',
    'no_shortcut': r'downsample_layers\.\d\.(weight|bias)|stages\.\d\.\d+\.block\.[013]\.(weight|bias)',
}


@pytest.mark.parametrize('form', KEYS)
def test_key_patterns(form):
    for key in published_form('tiny', form).state_dict():
        assert re.fullmatch(KEYS[form], key), key


@pytest.mark.parametrize('form', ['default', 'no_shortcut'])
@pytest.mark.parametrize('unit', ['u1', 'u2', 'u3'])
def test_fusing_is_exact(unit, form):
    model = randomize(RepNeXtU(TINY, unit=unit)).double().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused, report = fuse(model, form=form)
    x = torch.randn(1, 3, 75, 97).double()
    expected = by_definition(model, x)
    assert worst(fused(x), expected) < 1e-12
    assert worst(model(x), expected) < 1e-12
    assert report.norms_after == 0
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    again, nothing = fuse(fused, form=form)
    assert again is fused
    assert not nothing


def test_a_published_net_fuses_exactly():
    model = randomize(RepNeXtU('tiny')).double().eval()
    x = torch.randn(1, 3, 33, 47).double()
    for form in ('default', 'no_shortcut'):
        assert worst(fuse(model, form=form)[0](x), by_definition(model, x)) < 1e-12


def test_forms_may_differ_between_stages():
    model = randomize(RepNeXtU(TINY)).double().eval()
    fused, _ = fuse(model, form={'stages.3': 'no_shortcut'})
    assert {key.split('.')[3] for key in fused.state_dict() if key.startswith('stages.3')} == {'block'}
    assert 'stages.2.0.pwconv1.weight' in fused.state_dict()
    x = torch.randn(1, 3, 64, 64).double()
    assert worst(fused(x), by_definition(model, x)) < 1e-12


@pytest.mark.parametrize('form', ['keep_norms', 'half', 'three_quarters', 'dense'])
def test_other_forms_are_the_default_one(form):
    model = randomize(RepNeXtU(TINY)).eval()
    fused, default = fuse(model, form=form)[0], fuse(model)[0]
    assert all(torch.equal(a, b) for a, b in zip(fused.parameters(), default.parameters(), strict=True))


@pytest.mark.parametrize('keep', [True, False], ids=['shortcuts', 'no shortcuts'])
def test_deploy_builds_what_fusing_gives(keep):
    fused, _ = fuse(randomize(RepNeXtU(TINY)).eval(), form='default' if keep else 'no_shortcut')
    deploy = RepNeXtU(TINY, deploy=True, keep_shortcut=keep).eval()
    deploy.load_state_dict(fused.state_dict(), strict=True)
    x = torch.randn(1, 3, 41, 64)
    assert all(torch.equal(a, b) for a, b in zip(deploy(x), fused(x), strict=True))
    assert deploy.deploy
    assert not any(parameter.is_meta for parameter in deploy.parameters())


@pytest.mark.parametrize('keep', [True, False], ids=['shortcuts', 'no shortcuts'])
def test_switch_to_deploy(keep):
    model = randomize(RepNeXtU(TINY, keep_shortcut=keep)).double()
    x = torch.randn(1, 3, 41, 64).double()
    expected = by_definition(model.eval(), x)
    model.train()  # mmdeploy switches before it calls eval()
    assert model.switch_to_deploy() is model
    assert model.training
    keys = set(model.state_dict())
    assert model.switch_to_deploy() is model
    assert set(model.state_dict()) == keys
    assert any('.block.' in key for key in keys) != keep
    model.eval()
    assert worst(model(x), expected) < 1e-12
    assert count_norms(model) == 0


def test_two_conversions_in_one_process():
    """The authors' script counts downsamplings in a global and breaks the second network."""
    for _ in range(2):
        assert count_norms(RepNeXtU(TINY).switch_to_deploy()) == 0


class TestContract:
    def test_registered_in_the_root_registry(self):
        assert isinstance(MODELS.build({'type': 'RepNeXtU', 'arch': TINY}), RepNeXtU)

    @pytest.mark.parametrize('size', [(32, 32), (33, 95), (64, 32), (97, 131)], ids=str)
    def test_strides_round_down(self, size):
        for index, feature in enumerate(RepNeXtU(TINY).eval()(torch.randn(2, 3, *size))):
            stride = 4 * 2**index
            assert feature.shape == (2, TINY['dims'][index], size[0] // stride, size[1] // stride)

    @pytest.mark.parametrize('indices', [(0,), (3,), (1, 3), [2, 3]], ids=str)
    def test_out_indices(self, indices):
        model = RepNeXtU(TINY, out_indices=indices)
        channels = tuple(feature.shape[1] for feature in model.eval()(torch.randn(1, 3, 32, 32)))
        assert channels == model.out_channels == tuple(TINY['dims'][i] for i in indices)

    @pytest.mark.parametrize('frozen', range(-1, 5))
    def test_frozen_stages_stay_frozen(self, frozen):
        model = RepNeXtU(TINY, frozen_stages=frozen)
        assert model.train() is model
        layers, stages = model.downsample_layers, model.stages
        parts = [(layers[0],), (stages[0],), *((layers[i], stages[i]) for i in (1, 2, 3))]
        for index, modules in enumerate(parts):
            for module in modules:
                held = index <= frozen
                norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
                assert norms
                assert all(m.training != held for m in norms)
                assert all(p.requires_grad != held for p in module.parameters())

    @pytest.mark.parametrize('sync', [False, True], ids=['BN', 'SyncBN'])
    def test_norm_eval_whatever_the_class(self, sync):
        model = randomize(RepNeXtU(TINY, norm_eval=True))
        expected = model.eval()(torch.ones(1, 3, 32, 32))
        if sync:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model.train()
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        assert norms
        assert not any(m.training for m in norms)
        assert model.training
        for a, b in zip(model(torch.ones(1, 3, 32, 32)), expected, strict=True):
            torch.testing.assert_close(a, b)

    def test_norm_eval_trains_as_norms_that_are_not_folded(self):
        check_norm_eval_trains_as_norms_that_run(partial(RepNeXtU, TINY), ['repnext_u', 'merged_conv'])

    def test_drop_path_grows_linearly(self):
        model = RepNeXtU(TINY, drop_path_rate=0.3)
        rates = [getattr(block.drop_path, 'p', 0.0) for stage in model.stages for block in stage]
        assert rates == pytest.approx([0.3 * i / 6 for i in range(7)])
        model.train()(torch.randn(2, 3, 64, 64))[-1].sum().backward()

    def test_with_cp_gives_the_same_step(self):
        check_recomputing_gives_the_same_step(partial(RepNeXtU, TINY), size=64)

    def test_initial_weights(self):
        model = RepNeXtU('tiny')
        convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        assert all(conv.weight.std().item() == pytest.approx(0.02, rel=0.25) for conv in convs)
        assert not any(conv.bias.any() for conv in convs if conv.bias is not None)

    @pytest.mark.parametrize(
        ('shape', 'message'),
        [
            ((1, 3, 31, 64), 'RepNeXtU needs at least 32x32'),
            ((1, 1, 64, 64), r'takes \(N, 3, H, W\)'),
            ((3, 64, 64), r'takes \(N, 3, H, W\)'),
        ],
    )
    def test_wrong_inputs(self, shape, message):
        with pytest.raises(ValueError, match=message):
            RepNeXtU(TINY)(torch.zeros(shape))

    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            ({'frozen_stages': 5}, 'frozen_stages 5'),
            ({'out_indices': (1, 0)}, 'ascending, different stages'),
            ({'drop_path_rate': 1.0}, 'drop_path_rate'),
            ({'arch': 'm9'}, "unknown arch 'm9': choose one of tiny"),
            ({'arch': {'dims': (6, 12, 24, 48)}}, 'depths are needed'),
            ({'arch': {**TINY, 'width': 3}}, 'nothing else'),
            ({'arch': {**TINY, 'dims': (6, 12, 24)}}, 'one positive entry per stage'),
            ({'arch': {**TINY, 'depths': (1, 0, 1, 1)}}, 'one positive entry'),
            ({'arch': 4}, 'name or a dict'),
            ({'unit': 'u4'}, "unknown unit 'u4': choose one of u1, u2, u3"),
            ({'arch': 'base', 'unit': 'u1'}, '128 channels cannot be cut'),
            ({'pretrained': 'a.pth'}, r'RepNeXtU takes no pretrained.*init_cfg'),
        ],
    )
    def test_wrong_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            RepNeXtU(**{'arch': TINY, **options})

    def test_unknown_arguments(self):
        with pytest.raises(TypeError, match='depth'):
            RepNeXtU(TINY, depth=50)

    def test_other_image_channels_and_archs(self):
        model = RepNeXtU(UnitArch((4, 6, 10, 8), (1, 1, 1, 1)), in_channels=1)  # widths need not double
        assert [f.shape[1] for f in model.eval()(torch.randn(1, 1, 32, 32))] == [4, 6, 10, 8]

    def test_layer_depth(self):
        model = RepNeXtU('tiny')
        depth = {name: model.get_layer_depth(f'backbone.{name}', 'backbone.') for name, _ in model.named_parameters()}
        assert {total for _, total in depth.values()} == {8}
        assert depth['downsample_layers.0.0.weight'][0] == 0
        assert [depth[f'downsample_layers.{i}.1.weight'][0] for i in (1, 2, 3)] == [2, 3, 6]
        assert [depth[f'stages.{i}.0.pwconv1.weight'][0] for i in (0, 1, 3)] == [1, 2, 6]
        assert [depth[f'stages.2.{i}.pwconv1.weight'][0] for i in (0, 2, 3, 8)] == [3, 3, 4, 5]
        assert model.get_layer_depth('head.fc.weight', 'backbone.') == (7, 8)

    @pytest.mark.parametrize('form', ['default', 'no_shortcut'])
    def test_torch_script_traces_deploy_forms(self, form):
        model, x = randomize(RepNeXtU(TINY)).eval(), torch.randn(1, 3, 64, 64)
        network, _ = fuse(model, form=form)
        with torch.no_grad():
            traced = torch.jit.trace(network, x)
            assert worst(traced(x), model(x)) < 1e-4


class TestLoading:
    def test_an_authors_file_loads_without_its_dead_weights(self, tmp_path):
        source = randomize(RepNeXtU(TINY))
        state = dict(source.state_dict())
        dead = {f'stages.{s}.0.feature.conv_repara.{n}': torch.ones(1) for s in range(4) for n in ('weight', 'bias')}
        extra = {'head.2.weight': torch.ones(3, 48), 'head.2.bias': torch.ones(3)}
        path = tmp_path / 'authors.pth'
        torch.save({'model': {**state, **dead, **extra}}, path)
        model = RepNeXtU(TINY, init_cfg={'type': 'Pretrained', 'checkpoint': str(path)})
        model.init_weights()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert len(RepNeXtU(TINY).load_pretrained(str(path)).dropped) == len(dead) + len(extra)

    @pytest.mark.parametrize(
        ('wrong', 'message'),
        [
            ({}, 'holds the train form.*deploy=False'),
            ({'deploy': True}, 'with shortcuts.*build it with deploy=True'),
            ({'deploy': True, 'keep_shortcut': False}, 'without shortcuts.*keep_shortcut=False'),
        ],
    )
    def test_files_of_another_form_are_refused(self, tmp_path, wrong, message):
        path = tmp_path / 'file.pth'
        torch.save(RepNeXtU(TINY, **wrong).state_dict(), path)
        for options in ({}, {'deploy': True}, {'deploy': True, 'keep_shortcut': False}):
            model = RepNeXtU(TINY, **options)
            if options == wrong:
                assert model.load_pretrained(str(path)).loaded == len(model.state_dict())
            else:
                with pytest.raises(ValueError, match=message):
                    model.load_pretrained(str(path))

    def test_other_files_are_refused(self, tmp_path):
        path = tmp_path / 'file.pth'
        torch.save({'conv.weight': torch.ones(2)}, path)
        with pytest.raises(ValueError, match='missing'):
            RepNeXtU(TINY).load_pretrained(str(path))


def test_classifier():
    pytest.importorskip('mmpretrain')
    from mmengine.registry import init_default_scope

    init_default_scope('mmpretrain')
    settings = {
        'type': 'ImageClassifier',
        'backbone': {'type': 'RepNeXtU', 'arch': TINY, 'out_indices': (3,)},
        'neck': {'type': 'GlobalAveragePooling'},
        'head': {'type': 'LinearClsHead', 'num_classes': 5, 'in_channels': 48},
    }
    model = randomize(MODELS.build(settings)).double().eval()
    x = torch.randn(2, 3, 64, 64).double()
    fused, report = fuse(model, form='no_shortcut')
    assert report.norms_after == 0
    assert worst_error(fused(x), model(x)) < 1e-12
    assert fused(x).shape == (2, 5)


UNITS = ['u1', 'u2', 'u3']
SIZES = [(1, 1), (1, 9), (2, 2), (8, 5), (13, 13)]


def unit(name: str, channels: int = 6) -> nn.Module:
    return randomize(REP_UNITS[name](channels)).double().eval()


def block_by_definition(block: UnitBlock, x: torch.Tensor) -> torch.Tensor:
    """Every branch and norm apart."""
    gelu = torch.nn.functional.gelu
    return gelu(x) + block.pwconv2(gelu(block.pwconv1(block.feature.branches(x))))


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('name', UNITS)
def test_merged_equals_branches(name, size):
    module, x = unit(name), torch.randn(2, 6, *size).double().requires_grad_()
    merged, branches = module(x), module.branches(x)
    assert worst_error(merged, branches) < 1e-13
    tensors = [x, *module.parameters()]
    weights = torch.randn_like(merged)
    ours = torch.autograd.grad((merged * weights).sum(), tensors)
    theirs = torch.autograd.grad((branches * weights).sum(), tensors)
    scale = max(gradient.abs().max() for gradient in theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 1e-13 * scale


@pytest.mark.parametrize('name', UNITS)
def test_branches_run_while_norms_use_the_batch(name, monkeypatch):
    calls = []
    original = torch.nn.functional.conv2d
    module, x = unit(name), torch.randn(2, 6, 9, 7).double()
    assert torch.equal(module.train()(x), module.branches(x))
    module.eval()
    monkeypatch.setattr('torch.nn.functional.conv2d', lambda *a, **k: calls.append(1) or original(*a, **k))
    module(x)
    assert len(calls) == 1


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('name', UNITS)
def test_fused_is_a_plain_convolution(name, dtype):
    module, x = unit(name).to(dtype), torch.randn(2, 6, 9, 7).to(dtype)
    fused, report = fuse(module)
    assert type(fused) is nn.Conv2d
    assert (fused.weight.shape, fused.weight.dtype) == ((6, 1, 7, 7), dtype)
    assert report.parameters_after == 6 * 50
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert worst_error(fused(x).double(), module.double().branches(x.double())) < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize(('name', 'taps', 'norms'), [('u1', 2 * 83, 1), ('u2', 6 * 83, 3), ('u3', 6 * 57, 3)])
def test_parameters_and_names(name, taps, norms):
    module = unit(name)
    assert count_parameters(module) == taps + 12 * norms
    assert count_norms(module) == norms
    assert {m.eps for m in module.norms} == {1e-6}
    tops = {key.split('.')[0] for key in module.state_dict()}
    assert tops == {'dwconv1', 'dwconv2', 'dwconv3', *(['norm'] if name == 'u1' else ['norm1', 'norm2', 'norm3'])}
    assert not any(key.startswith('dwconv') and key.endswith('bias') for key in module.state_dict())


def test_thirds():
    with pytest.raises(ValueError, match="8 channels cannot be cut.*'u1' needs dims divisible by 3"):
        REP_UNITS['u1'](8)


@pytest.mark.parametrize('name', UNITS)
def test_fusing_in_training_mode_is_refused(name):
    with pytest.raises(ValueError, match='training mode'):
        fuse(REP_UNITS[name](6))


@pytest.mark.parametrize('name', UNITS)
def test_merging_under_autocast_rounds_once(name):
    check_merging_under_autocast_rounds_once(unit(name).float())


@pytest.mark.parametrize('form', ['default', 'no_shortcut'])
@pytest.mark.parametrize('name', UNITS)
def test_blocks_fuse_exactly(name, form):
    block = randomize(UnitBlock.train_form(6, REP_UNITS[name](6), drop_path=0.2)).double().eval()
    x = torch.randn(2, 6, 9, 7).double()
    before, expected = x.clone(), block_by_definition(block, x)
    fused, report = fuse(block, form=form)
    with torch.no_grad():  # where activations are written over
        assert worst_error(fused(x), expected) < 1e-13
    assert torch.equal(x, before)
    assert worst_error(fused(x), expected) < 1e-13
    pointwise = 15 * 36 + 6 * 6 if form == 'no_shortcut' else 8 * 36 + 5 * 6
    assert report.parameters_after == pointwise + (2 if form == 'no_shortcut' else 1) * 50 * 6
    assert report.norms_after == 0


def test_a_kept_shortcut_can_be_eliminated_later():
    block, x = randomize(UnitBlock.train_form(6, REP_UNITS['u3'](6))).double().eval(), torch.randn(2, 6, 9, 7).double()
    kept, _ = fuse(block)
    again, nothing = fuse(kept)
    assert again is kept
    assert not nothing
    eliminated, report = fuse(kept, form='no_shortcut')
    assert report
    assert worst_error(eliminated(x), block_by_definition(block, x)) < 1e-13


@pytest.mark.parametrize('size', [(4, 4), (9, 7), (16, 5)], ids=str)
@pytest.mark.parametrize('layer', [PatchStem(3, 8), PatchMerging(3, 8)], ids=['stem', 'merging'])
def test_patches_fuse_exactly(layer, size):
    layer, x = randomize(layer).double().eval(), torch.randn(2, 3, *size).double()
    first, second = layer
    fused, report = fuse(layer)
    assert type(fused) is nn.Conv2d
    assert (report.norms_before, report.norms_after) == (1, 0)
    expected = second(first(x))
    assert worst_error(layer(x), expected) < 1e-13
    assert worst_error(fused(x), expected) < 1e-13
    x = torch.randn(2, 3, 16, 16).double()
    assert torch.equal(layer.train()(x), second(first(x)))
