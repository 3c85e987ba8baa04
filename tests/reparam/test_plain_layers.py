"""Which layers may be read instead of called: only those whose call is the map of their own weight and bias."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, prune

from repnext_mm.reparam import Fusible, affine_of
from repnext_mm.reparam.kernel import is_affine
from repnext_mm.reparam.plain_layers import hooks_of_all_modules, is_intercepted, is_plain, why_called, why_intercepted
from tests.conftest import worst_error

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
}


def with_attribute(module: nn.Module, name: str, value: object) -> nn.Module:
    setattr(module, name, value)
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
