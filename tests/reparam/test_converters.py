"""Modules of other libraries: their own methods on a copy, checked, and never less complete than the library."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from repnext_mm.models import RepNeXt
from repnext_mm.models.merged_conv import ConvNorm
from repnext_mm.reparam import fuse, relative_error
from repnext_mm.reparam.fuse import count_norms
from tests.conftest import randomize

EXACT = 1e-10


@contextmanager
def float64_layers() -> Iterator[None]:
    """Many methods of other libraries build layers of the default dtype."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def mmpretrain(name: str, **options) -> nn.Module:
    backbones = pytest.importorskip('mmpretrain.models').backbones
    return getattr(backbones, name)(out_indices=(0, 1, 2, 3), **options)


def timm(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return pytest.importorskip('timm').create_model(name)


LARGE_KERNELS = {
    'large_kernel_sizes': [13, 13, 11, 7],
    'layers': [1, 1, 1, 1],
    'channels': [8, 16, 16, 24],
    'small_kernel': 5,
    'dw_ratio': 1.5,
}
PERCEPTRONS = {'channels': [16, 32, 64, 128], 'depths': [1, 1, 1, 1], 'sharesets_nums': [1, 2, 4, 8]}
# norms that remain: those beside no layer that could take them in
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    'RepVGG-A0': (lambda: mmpretrain('RepVGG', arch='A0'), 0),
    'MobileOne-s0': (lambda: mmpretrain('MobileOne', arch='s0'), 0),
    'RepLKNet': (lambda: mmpretrain('RepLKNet', arch=LARGE_KERNELS), 4),
    'RepMLP': (lambda: mmpretrain('RepMLPNet', arch=PERCEPTRONS, img_size=64), 5),
    'ResNet-18': (lambda: mmpretrain('ResNet', depth=18), 0),
    'timm RepViT-M0.9': (lambda: timm('repvit_m0_9'), 0),
    'timm MobileOne-s0': (lambda: timm('mobileone_s0'), 0),
    'timm FastViT-T8': (lambda: timm('fastvit_t8'), 0),
}


def ready(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    model = randomize(build()).to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith('gamma'):
            nn.init.uniform_(parameter, 0.5, 1.5)  # layer scale starts so small that it hides what it scales
    model.eval()  # MMPretrain's train() may return None
    return model


def by_the_library(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    with float64_layers():
        if type(model).__module__.startswith('timm'):
            return pytest.importorskip('timm.models').reparameterize_model(model)
        if hasattr(model, 'switch_to_deploy'):
            model.switch_to_deploy()
    return model


@pytest.mark.parametrize('name', MODELS)
def test_known_families(name):
    build, norms = MODELS[name]
    model, x = ready(build, torch.float64), torch.randn(1, 3, 64, 64).double()
    state, flags = copy.deepcopy(model.state_dict()), [(m.training, type(m)) for m in model.modules()]
    fused, report = fuse(model, probe=x)
    assert max(relative_error(fused, model, x)) < EXACT
    assert report.refused == ()
    assert report.norms_after == norms <= count_norms(by_the_library(model))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert flags == [(m.training, type(m)) for m in model.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in fused.modules())
    assert torch.get_default_dtype() == torch.float32
    again, second = fuse(fused)
    assert again is fused
    assert not second


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('name', ['RepVGG-A0', 'timm RepViT-M0.9', 'timm FastViT-T8'])
def test_dtype_and_memory_format_are_kept(name, dtype):
    model = ready(MODELS[name][0], dtype).to(memory_format=torch.channels_last)
    fused, _ = fuse(model)
    assert {tensor.dtype for tensor in fused.state_dict().values() if tensor.is_floating_point()} == {dtype}
    square = [p for p in fused.parameters() if p.dim() == 4 and p.shape[2] > 1 and p.shape[1] > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in square)
    if dtype == torch.float32:
        assert max(relative_error(fused, model, torch.randn(1, 3, 64, 64))) < 1e-4


def test_mmcvs_own_folding_gets_repvit_wrong_and_ours_does_not():
    fuse_conv_bn = pytest.importorskip('mmcv.cnn').fuse_conv_bn
    model, x = ready(MODELS['timm RepViT-M0.9'][0], torch.float64), torch.randn(1, 3, 64, 64).double()
    assert max(relative_error(fuse_conv_bn(copy.deepcopy(model)), model, x)) > 1e-2
    fused, report = fuse(model)
    assert report.norms_after == 0
    assert max(relative_error(fused, model, x)) < EXACT


def test_a_wrong_method_of_a_library_is_left_out():
    """MMPretrain's RepVGG loses squeeze-and-excitation in its deploy form."""
    arch = {
        'num_blocks': [1, 1, 1, 1],
        'width_factor': [0.25] * 4,
        'group_layer_map': None,
        'se_cfg': {'ratio': 16, 'divisor': 1},
    }
    model, x = ready(lambda: mmpretrain('RepVGG', arch=arch), torch.float64), torch.randn(1, 3, 64, 64).double()
    assert max(relative_error(fuse(model)[0], model, x)) > 1e-2
    fused, report = fuse(model, probe=x)
    assert max(relative_error(fused, model, x)) < EXACT
    assert any(reason.startswith('RepVGG.switch_to_deploy(): it changes the output by') for reason in report.refused)
    assert report.norms_after < report.norms_before  # what its branches have of plain pairs


class Toy(nn.Module):
    """Two parallel 1x1 convolutions that become one, in place or as a new module."""

    def __init__(self, *, method: str | None = 'fuse', result: str = 'new', error: float = 0.0) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.scale = nn.Parameter(torch.ones(1))
        self.whole = None
        self.result, self.error = result, error

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (self.a(x) + self.b(x) if self.whole is None else self.whole(x))

    def convert(self) -> object:
        whole = nn.Conv2d(3, 3, 1)  # of the default dtype, like those of most libraries
        whole.weight.data = self.a.weight.data + self.b.weight.data + self.error
        whole.bias.data = self.a.bias.data + self.b.bias.data
        if self.result == 'new':
            return nn.Sequential(whole, Scaled(self.scale))
        if self.result == 'weights':
            return whole.weight, whole.bias
        if self.result == 'error':
            raise AssertionError('not like this')
        self.whole = whole
        del self.a, self.b
        return self if self.result == 'self' else None


class Scaled(nn.Module):
    def __init__(self, scale: nn.Parameter) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class Fusing(Toy):
    def fuse(self) -> object:
        return self.convert() if self.whole is None else self


class Deploying(Toy):
    def switch_to_deploy(self) -> object:
        return self.convert() if self.whole is None else None

    def reparameterize(self) -> object:
        raise NotImplementedError('the first protocol counts')


def image() -> Tensor:
    return torch.randn(2, 3, 5, 4).double()


@pytest.mark.parametrize('probing', [True, False], ids=['probe', 'no probe'])
@pytest.mark.parametrize('result', ['new', 'none', 'self'])
@pytest.mark.parametrize('kind', [Fusing, Deploying])
def test_protocols(kind, result, probing):
    model, x = nn.Sequential(kind(result=result), nn.ReLU()).double().eval(), image()
    fused, report = fuse(model, probe=x if probing else None)
    assert report.modules == ('0',)
    assert report.refused == ()
    assert (report.parameters_before, report.parameters_after) == (25, 13)
    assert max(relative_error(fused, model, x)) < 1e-14
    assert model[0].whole is None
    assert fused[1] is model[1]
    assert not any(parameter.requires_grad for name, parameter in fused.named_parameters() if 'scale' not in name)
    assert not any(module.training for module in fused.modules())
    assert fuse(fused)[0] is fused


def test_what_a_method_leaves_as_it_was_stays_trainable():
    fused, _ = fuse(Deploying(result='none').eval())
    assert fused.scale.requires_grad
    assert not fused.whole.weight.requires_grad


@pytest.mark.parametrize(
    ('options', 'reason'),
    [
        ({'result': 'weights'}, 'it returned a tuple, which is not a module'),
        ({'result': 'error'}, 'AssertionError: not like this'),
        ({'error': 0.1}, 'it changes the output by'),
    ],
    ids=['weights', 'error', 'wrong'],
)
def test_refusals(options, reason):
    model = nn.Sequential(Fusing(**options)).double().eval()
    fused, report = fuse(model, probe=image())
    assert fused is model
    assert not report
    assert report.refused[0].startswith(f'0.fuse(): {reason}')


def test_what_the_probe_does_not_reach_is_left_out():
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = Fusing(), Fusing()

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    _, report = fuse(Half().double().eval(), probe=image())
    assert report.modules == ('used',)
    assert report.refused == ('unused.fuse(): the probe does not reach it',)


def test_methods_that_want_arguments_are_something_else():
    class Fuser(nn.Module):
        def fuse(self, other: Tensor) -> Tensor:
            raise NotImplementedError

        def forward(self, x: Tensor) -> Tensor:
            return x

    model = nn.Sequential(Fuser(), Deploying()).eval()
    _, report = fuse(model)
    assert report.modules == ('1',)
    assert report.refused == ()


def test_wrappers_that_answer_for_what_they_hold():
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def __getattr__(self, name: str) -> object:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__('module'), name)

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    model = Wrapper(Deploying(result='none')).eval()
    assert model.switch_to_deploy is not None
    fused, report = fuse(model)
    assert report.modules == ('module',)
    assert isinstance(fused, Wrapper)


class Outer(nn.Module):
    """Converts one of its parts, and leaves the other to whoever looks inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.own, self.inner = Fusing(), inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.own(x))

    def reparameterize(self) -> None:
        if isinstance(self.own, Fusing):
            self.own = self.own.fuse()


@pytest.mark.parametrize('probing', [True, False], ids=['probe', 'no probe'])
def test_what_remains_inside_is_converted_too(probing):
    model, x = nn.Sequential(Outer(Fusing())).double().eval(), image()
    fused, report = fuse(model, probe=x if probing else None)
    assert report.modules == ('0', '0.inner')
    assert max(relative_error(fused, model, x)) < 1e-14
    assert fused[0].own[0].weight.dtype == torch.float64


def test_only_the_wrong_one_inside_is_left_out():
    model, x = nn.Sequential(Outer(Fusing(error=0.1))).double().eval(), image()
    fused, report = fuse(model, probe=x)
    assert report.modules == ('0',)
    assert report.refused[0].startswith('0.inner.fuse(): it changes the output')
    assert max(relative_error(fused, model, x)) < 1e-14


def test_ours_come_first():
    model = randomize(nn.Sequential(Outer(ConvNorm(3, 3, 1, norm_cfg={'type': 'BN'})))).double().eval()
    fused, report = fuse(model)
    assert report.modules == ('0.inner', '0')
    assert max(relative_error(fused, model, image())) < 1e-14


def test_what_holds_ours_is_not_foreign():
    backbone = RepNeXt({'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)})
    fused, report = fuse(Outer(backbone).eval())
    assert report.modules[-1] == 'own'
    assert '' not in report.modules
    assert not fused.inner.deploy
    assert report.norms_after == 0


def test_norms_in_training_mode_are_refused_by_name():
    class Normed(Fusing):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

    with pytest.raises(ValueError, match=r'0\.norm is in training mode.*model\.eval\(\)'):
        fuse(nn.Sequential(Normed()))
    other = nn.Sequential(Fusing(), nn.BatchNorm2d(3)).double()
    with pytest.raises(ValueError, match=r'1 is in training mode'):
        fuse(other, probe=image())
    assert other[1].num_batches_tracked == 0


def test_shapes_without_values():
    with torch.device('meta'):
        model = nn.Sequential(Fusing(result='none')).eval()
    fused, report = fuse(model)
    assert report.modules == ('0',)
    assert all(parameter.is_meta for parameter in fused.parameters())


def test_what_is_foreign_may_be_left_alone():
    """So that the weights of a fused file fit the library's own model around the backbone."""
    rest = nn.Sequential(Fusing(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model = randomize(nn.Sequential(ConvNorm(3, 3, 1, norm_cfg={'type': 'BN'}), rest)).eval()
    fused, report = fuse(model, foreign=False)
    assert report.modules == ('0',)
    assert fused[1] is rest


INTERCEPTIONS = {
    'hook': lambda block: block.a.register_forward_hook(lambda module, args, output: 2 * output),
    'hook on the block': lambda block: block.register_forward_hook(lambda module, args, output: 2 * output),
    'forward': lambda block: setattr(block.a, 'forward', lambda x: 2 * x),
    'compiled': lambda block: setattr(block.a, '_compiled_call_impl', block.a._call_impl),
}


@pytest.mark.parametrize('probing', [True, False], ids=['probe', 'no probe'])
@pytest.mark.parametrize('kind', INTERCEPTIONS)
def test_what_a_library_does_not_know_of_is_not_lost(kind, probing):
    model, x = nn.Sequential(Fusing(), Fusing()).double().eval(), image()
    INTERCEPTIONS[kind](model[0])
    fused, report = fuse(model, probe=x if probing else None)
    assert report.modules == ('1',)
    assert report.refused
    assert all(reason.startswith('0') for reason in report.refused)
    assert max(relative_error(fused, model, x)) < 1e-14


def test_a_method_that_fuses_its_own_module_does_not_call_itself():
    """As a backbone does that inherits ``switch_to_deploy`` from ours and has no module of ours."""

    calls = []

    class Fuses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

        def switch_to_deploy(self) -> None:
            calls.append(1)
            self.layers = fuse(self.eval())[0].layers

    model, x = randomize(nn.Sequential(Fuses(), nn.ReLU())).double().eval(), image()
    fused, report = fuse(model, probe=x)
    assert len(calls) == 1
    assert (report.modules, report.norms_after, report.refused) == (('0',), 0, ())
    assert max(relative_error(fused, model, x)) < EXACT
