"""The backbone: published numbers, the reference implementation's numbers, and OpenMMLab's backbone contract."""

from __future__ import annotations

import inspect
import re
from functools import partial

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from repnext_mm import RepNeXt
from repnext_mm.models import ARCHITECTURES, Arch, resolve_arch
from repnext_mm.reparam import fuse, relative_error
from repnext_mm.reparam.fuse import count_norms, count_parameters
from tests.conftest import randomize, worst_error
from tests.models.backbones import check_norm_eval_trains_as_norms_that_run, check_recomputing_gives_the_same_step

TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 4, 1)}

# Facts B1 and A5: parameters of whole classifiers with 1000 classes; (train, upstream's fused form, folded completely)
PUBLISHED = {
    'm0': (2_716_480, 2_333_200, 2_328_080),
    'm1': (5_323_316, 4_829_560, 4_820_056),
    'm2': (7_049_082, 6_473_200, 6_462_112),
    'm3': (8_466_560, 7_818_920, 7_807_272),
    'm4': (14_080_480, 13_342_120, 13_321_512),
    'm5': (22_708_860, 21_737_560, 21_707_000),
    'm0e': (2_876_420, 2_546_400, 2_541_280),
    'm1e': (5_655_944, 5_255_080, None),
    'm2e': (7_437_148, 6_969_640, None),
}
BACKBONE = {'m0': 2_073_200, 'm1': 4_551_780, 'm2': 6_149_290, 'm3': 7_438_512, 'm4': 13_052_432, 'm5': 21_424_300}
KEYS = {'m0': (671, 283), 'm1': (1022, 436), 'm2': (1022, 436), 'm3': (944, 402), 'm4': (1646, 708), 'm5': (2114, 912)}
CONVS = {'m0': (251, 98), 'm1': (386, 152), 'm2': (386, 152), 'm3': (356, 140), 'm4': (626, 248), 'm5': (806, 320)}
NORMS_KEPT = {'m0': 17, 'm1': 26, 'm2': 26, 'm3': 24, 'm4': 42, 'm5': 54}


def heads(arch: str) -> tuple[int, int]:
    """Parameters of the classifier: two heads of norm and linear in train form, one linear layer fused."""
    width = resolve_arch(arch).embed_dims[3]
    linear = (width + 1) * 1000
    return 2 * (2 * width + linear), linear


@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_published_counts(arch):
    model = RepNeXt(arch).eval()
    kept, _ = fuse(model, form='keep_norms')
    deploy, report = fuse(model)

    in_train_form, with_norms, without = PUBLISHED[arch]
    two, one = heads(arch)
    assert count_parameters(model) + two == in_train_form
    assert count_parameters(model) == BACKBONE.get(arch, count_parameters(model))
    assert count_parameters(kept) + one == with_norms
    folded = count_parameters(deploy) + one
    dims, depths = resolve_arch(arch).embed_dims, resolve_arch(arch).depths
    leftover = sum(2 * width * depth for width, depth in zip(dims, depths, strict=True)) + sum(2 * w for w in dims[1:])
    assert folded == with_norms - leftover
    assert without is None or folded == without

    if arch not in KEYS:
        return

    def convs(net: nn.Module) -> int:
        return sum(isinstance(module, nn.Conv2d) for module in net.modules())

    assert (len(model.state_dict()) + 14, len(kept.state_dict()) + 2) == KEYS[arch]
    assert (convs(model), convs(kept)) == CONVS[arch]
    assert convs(deploy) == convs(kept)
    assert (count_norms(kept), count_norms(deploy), report.norms_after) == (NORMS_KEPT[arch], 0, 0)


BN = r'(weight|bias|running_mean|running_var|num_batches_tracked)'
MIXER = (
    r'token_mixer\.(conv_s\.(conv_3_3|conv_2_2)\.(weight|bias)|conv_s\.conv_3_[wh]\.(weight|bias)'
    r'|conv_m\.(conv_7_7|conv_5_3|conv_3_5)\.(weight|bias)|conv_m\.conv_[75]_[wh]\.weight'
)
TRAIN_KEYS = re.compile(
    rf'stem\.stem\.[02]\.(conv\.weight|norm\.{BN})'
    rf'|stages\.[0-3]\.blocks\.\d+\.({MIXER}|conv_l\.[01]\.(weight|bias))|norm\.{BN}|'
    rf'channel_mixer\.[02]\.(conv\.weight|norm\.{BN}))'
    rf'|stages\.[1-3]\.downsample\.({MIXER})|norm\.{BN}|channel_mixer\.[02]\.(conv\.weight|norm\.{BN}))'
)
DEPLOY_KEYS = re.compile(
    r'stem\.stem\.[02]\.(weight|bias)'
    r'|stages\.[0-3]\.blocks\.\d+\.(token_mixer\.(conv_s|conv_m|conv_l\.[01])|channel_mixer\.[02])\.(weight|bias)'
    r'|stages\.[1-3]\.downsample\.(token_mixer\.(conv_s|conv_m)|channel_mixer\.[02])\.(weight|bias)'
)


@pytest.mark.parametrize('arch', ['m0', 'm3'])
def test_key_patterns(arch):
    model = RepNeXt(arch).eval()
    strided_bias = re.compile(r'downsample.*conv_3_[wh]\.bias')
    for key in model.state_dict():
        assert TRAIN_KEYS.fullmatch(key), key
        assert not strided_bias.search(key), key
    for key in fuse(model)[0].state_dict():
        assert DEPLOY_KEYS.fullmatch(key), key


def test_e_variant_keys():
    keys = RepNeXt('m0e').state_dict()
    assert {key for key in keys if 'token_mixer' in key and 'stages.1.downsample' in key} == {
        'stages.1.downsample.token_mixer.weight',
        'stages.1.downsample.token_mixer.bias',
    }
    assert keys['stages.1.downsample.token_mixer.weight'].shape == (80, 1, 7, 7)
    assert keys['stages.0.blocks.0.token_mixer.weight'].shape == (40, 1, 11, 11)


class TestReference:
    """Agreement with the authors' implementation on M0 (tests/data)."""

    @pytest.fixture
    def model(self, golden_state) -> RepNeXt:
        model = RepNeXt('m0').double()
        model.load_state_dict({k: v for k, v in golden_state.items() if not k.startswith('head.')}, strict=True)
        return model

    @pytest.fixture
    def image(self, golden) -> torch.Tensor:
        import numpy as np

        return torch.from_numpy(np.random.default_rng(0).standard_normal(tuple(golden['input_shape'])))

    @pytest.mark.parametrize('form', ['train', 'default', 'keep_norms'])
    def test_features(self, model, image, golden, form):
        model.eval()
        network = model if form == 'train' else fuse(model, form=form)[0]
        for index, feature in enumerate(network(image)):
            assert worst_error(feature, torch.from_numpy(golden[f'stage{index}'])) < 1e-12

    def test_gradients(self, model, image, golden):
        model.train()
        loss = sum(feature.pow(2).mean() for feature in model(image))
        loss.backward()
        assert loss.item() == pytest.approx(golden['loss'].item(), rel=1e-12)
        norms = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
        assert set(norms) == set(golden['grad_names'].tolist())
        scale = golden['grad_norms'].max()
        for name, expected in zip(golden['grad_names'].tolist(), golden['grad_norms'], strict=True):
            assert abs(norms[name] - expected) < 1e-9 * scale, name


@pytest.mark.parametrize('arch', ['m0', 'm1', 'm2', 'm3', 'm4', 'm5'])
def test_fusing_is_exact(arch):
    model = randomize(RepNeXt(arch)).double().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused, _ = fuse(model)
    assert max(relative_error(fused, model, torch.randn(1, 3, 33, 47).double())) < 1e-12
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize('arch', ['m0', 'm0e'])
def test_deploy_builds_what_fusing_gives(arch):
    fused, _ = fuse(randomize(RepNeXt(arch)).eval())
    deploy = RepNeXt(arch, deploy=True).eval()
    deploy.load_state_dict(fused.state_dict(), strict=True)
    x = torch.randn(1, 3, 41, 64)
    assert all(torch.equal(a, b) for a, b in zip(deploy(x), fused(x), strict=True))
    assert deploy.deploy
    assert not any(parameter.is_meta for parameter in deploy.parameters())


@pytest.mark.parametrize('form', ['default', 'keep_norms'])
@pytest.mark.parametrize('arch', ['m0', 'm0e'])
def test_fusing_is_idempotent(arch, form):
    fused, _ = fuse(RepNeXt(arch).eval(), form=form)
    again, report = fuse(fused, form=form)
    assert again is fused
    assert not report


def test_switch_to_deploy():
    model = randomize(RepNeXt(TINY)).double()
    x = torch.randn(1, 3, 41, 64).double()
    expected = model.eval()(x)
    model.train()  # mmdeploy switches before it calls eval()
    assert model.switch_to_deploy() is model
    assert model.training
    assert model.switch_to_deploy() is model
    model.eval()
    assert max(worst_error(a, b) for a, b in zip(model(x), expected, strict=True)) < 1e-12
    assert count_norms(model) == 0


@pytest.mark.parametrize('size', [(32, 32), (33, 95), (64, 32), (97, 131)], ids=str)
def test_strides_for_any_size(size):
    for index, feature in enumerate(RepNeXt(TINY).eval()(torch.randn(2, 3, *size))):
        stride = 4 * 2**index
        assert feature.shape == (2, TINY['embed_dims'][index], -(-size[0] // stride), -(-size[1] // stride))


def test_train_and_branch_sum_agree_in_training_mode():
    """Online merging against the definition, over the whole network with batch statistics."""
    from repnext_mm.models.token_mixers import RepDWConv

    model = randomize(RepNeXt(TINY)).double().train()
    x = torch.randn(2, 3, 40, 56).double()
    merged = [feature.detach() for feature in model(x)]
    for module in model.modules():
        if isinstance(module, RepDWConv):
            module.forward = module.branches
    assert max(worst_error(a, b.detach()) for a, b in zip(merged, model(x), strict=True)) < 1e-12


class TestContract:
    def test_registered_in_the_root_registry(self):
        assert MODELS.get('RepNeXt') is RepNeXt
        assert isinstance(MODELS.build({'type': 'RepNeXt', 'arch': TINY}), RepNeXt)

    def test_signature(self):
        parameters = inspect.signature(RepNeXt).parameters
        assert [name for name, p in parameters.items() if p.kind is not p.KEYWORD_ONLY] == [
            'arch',
            'in_channels',
            'out_indices',
            'frozen_stages',
            'drop_path_rate',
            'norm_cfg',
            'act_cfg',
            'norm_eval',
            'with_cp',
            'deploy',
            'init_cfg',
        ]
        assert parameters.keys() >= {'weights', 'pretrained'}
        with pytest.raises(TypeError, match='depth'):
            RepNeXt(TINY, depth=50)

    def test_pretrained_names_the_way_out(self):
        with pytest.raises(ValueError, match=r'pretrained=None.*init_cfg'):
            RepNeXt(TINY, pretrained='torchvision://resnet50')

    @pytest.mark.parametrize('indices', [(0,), (3,), (1, 3), (0, 1, 2, 3), [2, 3]], ids=str)
    def test_out_indices(self, indices):
        model = RepNeXt(TINY, out_indices=indices)
        channels = tuple(feature.shape[1] for feature in model.eval()(torch.randn(1, 3, 32, 32)))
        assert channels == model.out_channels == tuple(TINY['embed_dims'][i] for i in indices)

    @pytest.mark.parametrize('indices', [(), (4,), (-1,), (1, 0), (0, 0), 'ab'], ids=str)
    def test_wrong_out_indices(self, indices):
        with pytest.raises(ValueError, match='ascending, different stages from 0 to 3'):
            RepNeXt(TINY, out_indices=indices)

    @pytest.mark.parametrize('norm', ['BN', 'SyncBN'])
    @pytest.mark.parametrize('frozen', range(-1, 5))
    def test_frozen_stages_stay_frozen(self, frozen, norm):
        model = RepNeXt(TINY, frozen_stages=frozen, norm_cfg={'type': norm})
        assert model.train() is model
        for index, part in enumerate((model.stem, *model.stages)):
            held = index <= frozen
            norms = [m for m in part.modules() if isinstance(m, _BatchNorm)]
            assert norms
            assert all(m.training != held for m in norms)
            assert all(p.requires_grad != held for p in part.parameters())

    @pytest.mark.parametrize('norm', ['BN', 'SyncBN'])
    def test_norm_eval_whatever_the_class(self, norm):
        model = RepNeXt(TINY, norm_eval=True, norm_cfg={'type': norm})
        if norm == 'BN':  # as mmengine converts it before training
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model.train()
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        assert norms
        assert not any(m.training for m in norms)
        assert model.training
        assert all(p.requires_grad for p in model.parameters())

    def test_norm_eval_trains_as_norms_that_are_not_folded(self):
        check_norm_eval_trains_as_norms_that_run(partial(RepNeXt, TINY), ['repnext', 'merged_conv'])

    def test_norm_cfg_reaches_every_norm(self):
        model = RepNeXt(TINY, norm_cfg={'type': 'BN', 'eps': 1e-3, 'momentum': 0.03, 'requires_grad': False})
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.03)}
        assert not any(p.requires_grad for m in norms for p in m.parameters())

    def test_other_norms_and_activations_come_from_mmcv(self):
        pytest.importorskip('mmcv')
        model = RepNeXt(TINY, norm_cfg={'type': 'GN', 'num_groups': 2}, act_cfg={'type': 'HSwish'})
        kinds = {type(m).__name__ for m in model.modules()}
        assert 'GroupNorm' in kinds
        assert kinds & {'HSwish', 'Hardswish'}
        assert not kinds & {'BatchNorm2d', 'GELU'}

    def test_drop_path_grows_linearly(self):
        model = RepNeXt(TINY, drop_path_rate=0.3)
        rates = [getattr(b.drop_path, 'p', 0.0) for stage in model.stages for b in stage.blocks]
        assert rates == pytest.approx([0.3 * i / 6 for i in range(7)])
        model.train()(torch.randn(2, 3, 32, 32))[-1].sum().backward()

    def test_with_cp_gives_the_same_step(self):
        check_recomputing_gives_the_same_step(partial(RepNeXt, TINY), size=40)

    @pytest.mark.parametrize(
        ('shape', 'message'),
        [
            ((1, 3, 31, 64), 'needs at least 32x32'),
            ((1, 3, 64, 31), 'needs at least 32x32'),
            ((1, 1, 64, 64), r'takes \(N, 3, H, W\)'),
            ((3, 64, 64), r'takes \(N, 3, H, W\)'),
        ],
    )
    def test_wrong_inputs(self, shape, message):
        with pytest.raises(ValueError, match=message):
            RepNeXt(TINY)(torch.zeros(shape))

    def test_other_image_channels(self):
        assert len(RepNeXt(TINY, in_channels=4).eval()(torch.randn(1, 4, 32, 32))) == 4

    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            ({'frozen_stages': 5}, 'frozen_stages 5'),
            ({'frozen_stages': -2}, 'frozen_stages -2'),
            ({'drop_path_rate': 1.0}, 'drop_path_rate'),
            ({'arch': 'm9'}, "unknown arch 'm9': choose one of m0"),
            ({'arch': {'embed_dims': (8, 16, 32, 64)}}, 'depths are needed'),
            ({'arch': {**TINY, 'width': 3}}, 'nothing else is known'),
            ({'arch': {**TINY, 'embed_dims': (8, 16, 32)}}, 'one entry per stage'),
            ({'arch': {**TINY, 'embed_dims': (8, 16, 32, 48)}}, 'double'),
            ({'arch': {**TINY, 'embed_dims': (6, 12, 24, 48)}}, 'multiples of 4'),
            ({'arch': {**TINY, 'depths': (1, 0, 1, 1)}}, 'at least 1'),
            ({'arch': {**TINY, 'mlp_ratio': 0}}, 'mlp_ratio'),
            ({'arch': {**TINY, 'token_mixer': 'dual'}}, "'dual'"),
            ({'arch': 4}, 'name or a dict'),
            ({'arch': {**TINY, 'embed_dims': (8.0, 16.0, 32.0, 64.0)}}, r'embed_dims .* must be whole numbers'),
            ({'arch': {**TINY, 'depths': 'abcd'}}, "depths 'abcd' must be whole numbers"),
            ({'arch': {**TINY, 'mlp_ratio': '2'}}, "mlp_ratio '2' must be a positive number"),
            ({'arch': {**TINY, 'mlp_ratio': float('nan')}}, 'mlp_ratio nan must be a positive number'),
            ({'in_channels': 0}, 'in_channels 0 must be the number of channels'),
            ({'in_channels': '3'}, "in_channels '3' must be the number of channels"),
            ({'norm_eval': 'yes'}, "norm_eval 'yes' must be True or False"),
            ({'with_cp': 1}, 'with_cp 1 must be True or False'),
            ({'deploy': None}, 'deploy None must be True or False'),
            ({'drop_path_rate': '0.1'}, r"drop_path_rate '0.1' must be in \[0, 1\)"),
        ],
    )
    def test_wrong_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            RepNeXt(**{'arch': TINY, **options})

    def test_an_arch_may_be_an_object(self):
        arch = Arch((8, 16, 32, 64), (1, 1, 1, 1), mlp_ratio=3)
        assert RepNeXt(arch).stages[0].blocks[0].channel_mixer[0].conv.out_channels == 24

    def test_layer_depth(self):
        model = RepNeXt('m3')
        depth = {name: model.get_layer_depth(f'backbone.{name}', 'backbone.') for name, _ in model.named_parameters()}
        assert {total for _, total in depth.values()} == {10}
        assert depth['stem.stem.0.conv.weight'][0] == 0
        assert depth['stages.0.blocks.2.norm.weight'][0] == 1
        assert depth['stages.1.downsample.norm.weight'][0] == 2
        assert depth['stages.2.downsample.norm.weight'][0] == 3
        assert [depth[f'stages.2.blocks.{i}.norm.weight'][0] for i in (0, 2, 3, 12)] == [3, 3, 4, 7]
        assert depth['stages.3.blocks.1.norm.weight'][0] == 8
        assert model.get_layer_depth('neck.fpn.weight', 'backbone.') == (9, 10)
        assert [value for value, _ in depth.values()] == sorted(value for value, _ in depth.values())

    def test_half_precision_runs(self):
        model = fuse(randomize(RepNeXt(TINY)).eval())[0].to(torch.bfloat16)
        assert {f.dtype for f in model(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16))} == {torch.bfloat16}

    def test_torch_script_traces_both_forms(self):
        model, x = randomize(RepNeXt(TINY)).eval(), torch.randn(1, 3, 64, 64)
        fused, _ = fuse(model)
        with torch.no_grad():
            traced = torch.jit.trace(fused, x)
            assert max(worst_error(a, b) for a, b in zip(traced(x), model(x), strict=True)) < 1e-4
