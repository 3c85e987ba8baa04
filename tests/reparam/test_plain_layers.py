"""Which layers may be read instead of called: only those whose call is the map of their own weight and bias."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, prune

from repnext_mm.reparam import Fusible, affine_of, fuse
from repnext_mm.reparam.kernel import is_affine
from repnext_mm.reparam.plain_layers import hooks_of_all_modules, is_intercepted, is_plain, why_called, why_intercepted
from tests.conftest import worst_error


class Inert(nn.Parameter):
    """Only another name."""


class Doubling(torch.Tensor):
    """As the tensors of quantization libraries do, it decides what a convolution with it computes."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            output = function(*args, **(kwargs or {}))
        if function.__name__ == 'detach':
            return output.as_subclass(cls)
        return 2 * output if 'conv' in function.__name__ else output


PLAIN = {
    'conv1d': lambda: nn.Conv1d(4, 4, 1),
    'conv2d': lambda: nn.Conv2d(4, 4, 1),
    'conv3d': lambda: nn.Conv3d(4, 4, 1),
    'linear': lambda: nn.Linear(4, 4),
    'norm1d': lambda: nn.BatchNorm1d(4),
    'norm2d': lambda: nn.BatchNorm2d(4),
    'sync': lambda: nn.SyncBatchNorm(4),
    'subclass': lambda: type('Named', (nn.Conv2d,), {})(4, 4, 1),
    'parametrized': lambda: parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)),
    'unpruned': lambda: prune.remove(prune.l1_unstructured(nn.Conv2d(4, 4, 1), 'weight', 0.5), 'weight'),
    'own weight': lambda: with_attribute(nn.Conv2d(4, 4, 1), 'label', 'any'),
    'weight of an inert kind': lambda: with_attribute(nn.Conv2d(4, 4, 1), 'weight', Inert(torch.ones(4, 4, 1, 1))),
    'weight as a tensor': lambda: without_parameter(nn.Conv2d(4, 4, 1)),
    'state_dict hook': lambda: hooked('_register_state_dict_hook'),
    'load_state_dict hook': lambda: hooked('register_load_state_dict_post_hook'),
}


def with_attribute(module: nn.Module, name: str, value: object) -> nn.Module:
    setattr(module, name, value)
    return module


def without_parameter(module: nn.Module) -> nn.Module:
    """As ``DataParallel`` and functional calls leave it."""
    weight = module.weight.detach()
    del module.weight
    return with_attribute(module, 'weight', weight)


def of_class(kind: type[nn.Module], **attributes: object) -> nn.Module:
    module = kind(4, 4, 1) if kind is nn.Conv2d else kind(4)
    module.__class__ = type('Other', (kind,), attributes)
    return module


def hooked(register: str) -> nn.Module:
    module = nn.Conv2d(4, 4, 1)
    getattr(module, register)(lambda *_: None)
    return module


def compiled() -> nn.Module:
    module = nn.Conv2d(4, 4, 1)
    module._compiled_call_impl = module._call_impl  # what compile() sets
    return module


class Adapter(nn.Module):
    """Answers for the layer that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__('layer'), name)

    def forward(self, x):
        return self.layer(x) + x


class Called(nn.Conv2d):
    def __call__(self, x):
        return super().__call__(x) + 1


class FakeQuantized(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight.round(), self.bias)


class Standardized(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


OTHERS = {
    'forward hook': lambda: hooked('register_forward_hook'),
    'pre-hook': lambda: hooked('register_forward_pre_hook'),
    'backward hook': lambda: hooked('register_full_backward_hook'),
    'backward pre-hook': lambda: hooked('register_full_backward_pre_hook'),
    'pruned': lambda: prune.l1_unstructured(nn.Conv2d(4, 4, 1), 'weight', 0.5),
    'lazy': lambda: nn.LazyConv2d(4, 1),
    'forward': lambda: with_attribute(nn.Conv2d(4, 4, 1), 'forward', lambda x: x),
    'bound forward': lambda: with_attribute(nn.BatchNorm2d(4), 'forward', nn.BatchNorm2d(4).forward),
    '_conv_forward': lambda: with_attribute(
        nn.Conv2d(4, 4, 1), '_conv_forward', types.MethodType(nn.Conv2d._conv_forward, nn.Conv2d(4, 4, 1))
    ),
    '_call_impl': lambda: with_attribute(nn.Conv2d(4, 4, 1), '_call_impl', lambda x: x),
    '_call_impl of the class': lambda: of_class(nn.Conv2d, _call_impl=lambda self, x: self.forward(x) + 1),
    '__getattribute__': lambda: of_class(
        nn.Conv2d, __getattribute__=lambda self, name: object.__getattribute__(self, name)
    ),
    '__getattr__': lambda: of_class(nn.Conv2d, __getattr__=lambda self, name: nn.Module.__getattr__(self, name)),
    'weight of the class': lambda: of_class(nn.Conv2d, weight=property(lambda self: self._parameters['weight'] * 2)),
    'weight of a norm': lambda: of_class(nn.BatchNorm2d, weight=property(lambda self: 1 + self._parameters['weight'])),
    'mean of a norm': lambda: of_class(
        nn.BatchNorm2d, running_mean=property(lambda self: self._buffers['running_mean'] + 1)
    ),
    'kind of tensor': lambda: with_attribute(
        nn.Conv2d(4, 4, 1), 'weight', nn.Parameter(torch.ones(4, 4, 1, 1).as_subclass(Doubling))
    ),
    'kind of statistics': lambda: with_attribute(nn.BatchNorm2d(4), 'running_var', torch.ones(4).as_subclass(Doubling)),
    'sparse': lambda: with_attribute(nn.Linear(4, 4), 'weight', nn.Parameter(torch.eye(4).to_sparse())),
    'lazy norm': nn.LazyBatchNorm2d,
    'compiled': compiled,
    'adapter': Adapter,
    'called': lambda: Called(4, 4, 1),
    'quantized': lambda: FakeQuantized(4, 4, 1),
    'standardized': lambda: Standardized(4, 4, 1),
    'transposed': lambda: nn.ConvTranspose2d(4, 4, 1),
    'group norm': lambda: nn.GroupNorm(2, 4),
    'activation': nn.GELU,
}


@pytest.mark.parametrize('kind', PLAIN)
def test_plain(kind):
    layer = PLAIN[kind]()
    assert is_plain(layer)
    assert why_called(layer) == ''


@pytest.mark.filterwarnings('ignore:Lazy modules')
@pytest.mark.parametrize('kind', OTHERS)
def test_not_plain(kind):
    layer = OTHERS[kind]()
    assert not is_plain(layer)
    assert why_called(layer)
    assert bool(why_intercepted(layer)) == is_intercepted(layer)


@pytest.mark.filterwarnings('ignore:.*weight_norm.* is deprecated')
def test_older_weight_norm_is_not_plain():
    assert why_called(nn.utils.weight_norm(nn.Conv2d(4, 4, 1))) == 'it has hooks, which would not run'


def test_in_place_compilation_is_seen():
    layer = nn.Conv2d(4, 4, 1)
    if not hasattr(layer, 'compile'):
        pytest.skip('torch before 2.2')
    layer.compile(backend='eager')
    assert not is_plain(layer)


@pytest.mark.parametrize(
    'register',
    [
        'register_module_forward_hook',
        'register_module_forward_pre_hook',
        'register_module_full_backward_hook',
        'register_module_full_backward_pre_hook',
    ],
)
def test_hooks_of_all_modules_are_seen_apart(register):
    layer = nn.Conv2d(4, 4, 1)
    assert not hooks_of_all_modules()
    handle = getattr(torch_module, register)(lambda *_: None)
    try:
        assert hooks_of_all_modules()
        assert is_plain(layer)  # what takes its place has them too
    finally:
        handle.remove()
    assert not hooks_of_all_modules()


def test_frozen_norms_are_plain_and_affine_in_any_mode():
    norm = pytest.importorskip('torchvision.ops').FrozenBatchNorm2d(4, eps=0.1).double().train()
    for tensor in norm.buffers():
        tensor.copy_(torch.rand(4) + 0.5)
    assert is_plain(norm)
    assert is_affine(norm)
    x, (scale, shift) = torch.randn(2, 4, 3, 3).double(), affine_of(norm)
    assert worst_error(x * scale.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1), norm(x)) < 1e-15


@pytest.mark.skipif(torch.__version__.startswith('2.1.'), reason='its compiler does not read what a module holds')
@pytest.mark.parametrize('hook', [False, True], ids=['plain', 'hooked'])
def test_the_question_can_be_compiled(hook):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return x if is_plain(self.conv) else self.conv(x)

    torch.compiler.reset()
    reader, x = Reader(), torch.randn(1, 4, 2, 2)
    if hook:
        reader.conv.register_forward_hook(lambda module, args, output: 2 * output)
    run = torch.compile(reader, backend='eager', fullgraph=True)
    assert torch.equal(run(x), reader.conv(x) if hook else x)


class Written(Fusible):
    """Defines its output and its deploy form."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.branches(x)

    def branches(self, x):
        return self.conv(x)

    def fused(self, form):
        return nn.Identity()


def test_a_class_with_another_forward_has_its_own_deploy_form_or_none():
    def doubled(self, x):
        return 2 * self.conv(x)

    def fused(self, form):
        return self

    for name in ('forward', 'branches'):
        kind = type('Further', (Written,), {name: doubled})
        assert why_intercepted(kind()) == f'its class Further overrides {name}() alone, of which fused() does not know'
        assert fuse(nn.Sequential(kind()))[1].refused == (f'0: {why_intercepted(kind())}',)
        assert not is_intercepted(type('Further', (Written,), {name: doubled, 'fused': fused})())
        assert is_intercepted(type('Last', (kind,), {})())
    assert not is_intercepted(type('Named', (Written,), {'obstacles': lambda self, form: iter(())})())


def test_methods_that_are_replaced_in_a_fusible_class_or_instance_count(monkeypatch):
    module = Written()
    assert not is_intercepted(module)
    module.branches = lambda x: x
    assert why_intercepted(module) == 'its branches was replaced'
    monkeypatch.setattr(Written, 'forward', lambda self, x: 2 * self.conv(x))
    assert why_intercepted(Written()) == 'the methods of its class Written were replaced'


class Doubled(Fusible):
    """Reads one layer, and holds another that fuses by itself."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.inner = nn.ModuleList(inner)

    def obstacles(self, form):
        yield self.conv, why_called(self.conv)

    def fused(self, form):
        return self


def test_a_fusible_module_says_what_stays_and_why():
    module = Doubled(Doubled())
    assert module.not_plain() == ()
    module.conv.register_forward_hook(lambda *_: None)
    module.inner[0].conv.forward = lambda x: x
    module.inner[0].register_forward_pre_hook(lambda *_: None)
    module.inner[0].inner.append(Doubled())
    module.inner[0].inner[0].conv = Adapter()
    assert module.not_plain() == (
        'conv: it has hooks, which would not run',
        'inner.0: it has hooks, which would not run',
        'inner.0.conv: its forward was replaced',
        'inner.0.inner.0.conv: its class Adapter may do more than its weight and bias say',
    )
    module.inner[0].conv.register_forward_hook(lambda *_: None)
    module.forward = lambda x: x
    assert module.not_plain()[0] == 'its forward was replaced'
