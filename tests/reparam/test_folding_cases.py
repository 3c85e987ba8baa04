"""Where a norm folds and where it stays, case by case: every answer is exact, however the model is called."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from repnext_mm.reparam import fuse
from repnext_mm.reparam.fuse import count_norms
from tests.conftest import randomize, worst_error
from tests.reparam.test_plain_layers import Doubling

EXACT = 1e-12


class Written(nn.Module):
    """Children, and a ``forward`` as a function of them and the input."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def written(forward: Callable[..., Any], **children: nn.Module) -> nn.Module:
    model = type('Case', (Written,), {'forward': forward})
    return model(**(children or {'c': conv(), 'b': nn.BatchNorm2d(6)}))


def conv(inputs: int = 4, outputs: int = 6, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=options.pop('padding', size // 2), **options)


def image() -> torch.Tensor:
    return torch.randn(2, 4, 9, 11, generator=torch.Generator().manual_seed(1)).double()


@torch.no_grad()
def fused_and_compared(
    model: nn.Module, *, calls: Callable[[nn.Module], Any] | None = None, x: torch.Tensor | None = None
) -> tuple[nn.Module, tuple[str, ...], int]:
    """Fuse, compare, and return the model, what was refused, and how many norms are left."""
    randomize(model).double().eval()
    call = calls or (lambda network: network(image() if x is None else x))
    expected = call(model)
    fused, report = fuse(model)
    assert report.norms_after == count_norms(fused)
    assert worst_error(call(fused), expected) < EXACT
    assert torch.equal(call(model), expected)
    again, second = fuse(fused)
    assert again is fused
    assert not second
    return fused, report.refused, report.norms_after


FOLDS = {
    'in front of 1x1': lambda: nn.Sequential(nn.BatchNorm2d(4), conv(size=1)),
    'in front of unpadded': lambda: nn.Sequential(nn.BatchNorm2d(4), conv(padding=0, groups=2)),
    'in front of reflecting': lambda: nn.Sequential(nn.BatchNorm2d(4), conv(padding_mode='reflect')),
    'in front of two': lambda: written(
        lambda s, x: (lambda y: s.c(y) + s.d(y))(s.b(x)), b=nn.BatchNorm2d(4), c=conv(size=1), d=conv(size=1)
    ),
    'in front of dropout and linear': lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3)
    ),
    'two norms': lambda: nn.Sequential(conv(), nn.BatchNorm2d(6), nn.BatchNorm2d(6)),
    'on both sides': lambda: nn.Sequential(nn.BatchNorm2d(4), conv(size=1), nn.BatchNorm2d(6)),
    'behind dropout': lambda: nn.Sequential(conv(), nn.Dropout(0.5), nn.BatchNorm2d(6)),
    'behind identity': lambda: nn.Sequential(conv(), nn.Identity(), nn.BatchNorm2d(6)),
    'transposed': lambda: nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3, 2, groups=2, output_padding=1, bias=False), nn.BatchNorm2d(6)
    ),
    'behind average pooling': lambda: nn.Sequential(conv(), nn.AvgPool2d(3, 2, ceil_mode=True), nn.BatchNorm2d(6)),
    'behind padded pooling that does not count': lambda: nn.Sequential(
        conv(), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.BatchNorm2d(6)
    ),
    'behind pooling to a size': lambda: nn.Sequential(conv(), nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(6)),
    'behind a larger map': lambda: nn.Sequential(
        conv(), nn.Upsample(scale_factor=2, mode='bicubic', align_corners=True), nn.BatchNorm2d(6)
    ),
    'in front of pooling': lambda: nn.Sequential(nn.BatchNorm2d(4), nn.AvgPool2d(2), conv(size=1)),
    'concatenation': lambda: written(
        lambda s, x: s.b(torch.cat([s.c(x), s.d(x)], dim=1)), c=conv(4, 4), d=conv(4, 2, 1), b=nn.BatchNorm2d(6)
    ),
    'sum': lambda: written(lambda s, x: s.b(s.c(x) + s.d(2 * x)), c=conv(), d=conv(bias=False), b=nn.BatchNorm2d(6)),
    'sum in place': lambda: written(_added_in_place, c=conv(), d=conv(), b=nn.BatchNorm2d(6)),
    'sum of a stack': lambda: written(
        lambda s, x: s.b(torch.cat((s.c(x), s.d(x)), 1) + s.e(x)),
        c=conv(4, 3),
        d=conv(4, 3),
        e=conv(),
        b=nn.BatchNorm2d(6),
    ),
    'by name': lambda: written(lambda s, x: s.b(input=s.c(input=x))),
    'shape of what is between': lambda: written(lambda s, x: (lambda y: s.b(y)[..., : y.shape[-1] - 1])(s.c(x))),
    'attribute of the layer': lambda: _with_attribute(),
    'checkpointing': lambda: written(
        lambda s, x: checkpoint(s.q, x, use_reentrant=False), q=nn.Sequential(conv(), nn.BatchNorm2d(6))
    ),
    'error on one way': lambda: written(_raises_for_small),
    'unused optional argument': lambda: written(lambda s, x, mask=None: s.b(s.c(x)) * (1 if mask is None else mask)),
    'modes': lambda: written(lambda s, x: s.b(s.c(x if torch.is_grad_enabled() else x + 0))),
}


def _added_in_place(s, x):
    y = s.c(x)
    y += s.d(x)
    return s.b(y)


def _raises_for_small(s, x):
    if x.shape[-1] < 3:
        raise ValueError('too small')
    return s.b(s.c(x))


def _with_attribute() -> nn.Module:
    class Scaled(nn.Conv2d):
        scale = 2.0

    model = written(
        lambda s, x: s.b(s.c(F.pad(x, (s.c.pad_by_parent,) * 4) * s.c.scale)), c=Scaled(4, 6, 3), b=nn.BatchNorm2d(6)
    )
    model.c.pad_by_parent = 1
    return model


@pytest.mark.parametrize('case', FOLDS)
def test_folds(case):
    _, refused, norms = fused_and_compared(FOLDS[case]())
    assert norms == 0
    assert refused == ()


def test_linear_layers_and_their_norms():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    fused, _, norms = fused_and_compared(model, x=torch.randn(3, 4).double())
    assert norms == 0
    with pytest.raises(AssertionError, match='inputs of another dimension'):
        fused(torch.randn(3, 6, 4).double())  # the norm would take the second axis, the fused layer the last
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 6))
    assert fused_and_compared(model, x=torch.randn(3, 4).double())[2] == 0


def _hooked(register: str) -> nn.Module:
    model = nn.Sequential(conv(), nn.BatchNorm2d(6))
    getattr(model[0], register)(lambda *_: None)
    return model


def _replaced(index: int, name: str, method: Callable[..., Any]) -> nn.Module:
    model = nn.Sequential(conv(), nn.BatchNorm2d(6))
    setattr(model[index], name, types.MethodType(method, model[index]))
    return model


def _partial() -> nn.Module:
    model = nn.Sequential(conv(), nn.BatchNorm2d(6))
    model[0].forward = functools.partial(nn.Conv2d.forward, model[0])
    return model


def _compiled(*path: int) -> nn.Module:
    model = nn.Sequential(nn.Sequential(conv(), nn.BatchNorm2d(6)), nn.ReLU())
    part = model
    for index in path:
        part = part[index]
    part._compiled_call_impl = part._call_impl  # what compile() sets
    return model


def _referring(refer: Callable[[nn.Module], object]) -> nn.Module:
    model = written(lambda s, x: s.q(x) + s.other(x), q=nn.Sequential(conv(), nn.BatchNorm2d(6)))
    model.other = refer(model.q[0])
    return model


class _Slotted:
    __slots__ = ('layer',)

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def _bound_root() -> nn.Module:
    model = written(lambda s, x: s.b(s.c(x)))
    model.forward = types.MethodType(lambda s, x: s.b(s.c(x)).relu(), model)
    return model


def _adding_method() -> nn.Module:
    model = nn.Sequential(conv(), nn.BatchNorm2d(6))
    model[1]._check_input_dim = lambda x: x.mul_(2)
    return model


def _weight(index: int, change: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    model = nn.Sequential(conv(), nn.BatchNorm2d(6))
    model[index].weight = change(model[index].weight.detach())
    return model


def _of_class(index: int, **attributes: Any) -> nn.Module:
    model = nn.Sequential(conv(), nn.BatchNorm2d(6))
    model[index].__class__ = type('Other', (type(model[index]),), attributes)
    return model


def _doubled_weight(s, name):
    if name == 'weight':
        return 2 * object.__getattribute__(s, '_parameters')[name]
    return object.__getattribute__(s, name)


ON_THE_INSTANCE = {
    'forward hook': lambda: _hooked('register_forward_hook'),
    'pre-hook': lambda: _hooked('register_forward_pre_hook'),
    'backward hook': lambda: _hooked('register_full_backward_hook'),
    'forward of the layer': lambda: _replaced(0, 'forward', lambda s, x: nn.Conv2d.forward(s, x) * 2),
    'forward of the norm': lambda: _replaced(1, 'forward', lambda s, x: nn.BatchNorm2d.forward(s, x) * 2),
    '_conv_forward': lambda: _replaced(0, '_conv_forward', lambda s, x, w, b: nn.Conv2d._conv_forward(s, x, 3 * w, b)),
    'another method': _adding_method,
    'partial': _partial,
    'compiled': _compiled,
    'compiled part': lambda: _compiled(0),
    'compiled layer': lambda: _compiled(0, 0),
    'forward of the root': _bound_root,
    'list': lambda: _referring(lambda layer: (lambda held: lambda x: held[0](x))([layer])),
    'slot': lambda: _referring(_Slotted),
    'bound method': lambda: _referring(lambda layer: layer.__call__),
    'weak reference': lambda: _referring(lambda layer: (lambda held: lambda x: held()(x))(weakref.ref(layer))),
    '_call_impl': lambda: _replaced(0, '_call_impl', lambda s, x: s.forward(x) * 2),
    'kind of weight': lambda: _weight(0, lambda weight: nn.Parameter(weight.as_subclass(Doubling))),
    'kind of weight of the norm': lambda: _weight(1, lambda weight: nn.Parameter(weight.as_subclass(Doubling))),
    'weight of the class': lambda: _of_class(0, weight=property(lambda s: 2 * s._parameters['weight'])),
    'bias of the class of the norm': lambda: _of_class(1, bias=property(lambda s: 2 * s._parameters['bias'])),
    'attributes of the class': lambda: _of_class(0, __getattribute__=_doubled_weight),
    'pruned': lambda: nn.Sequential(prune.l1_unstructured(conv(), 'weight', 0.5), nn.BatchNorm2d(6)),
}


@pytest.mark.parametrize('case', ON_THE_INSTANCE)
def test_what_is_on_the_instance_stays_and_is_named(case):
    _, refused, norms = fused_and_compared(ON_THE_INSTANCE[case]())
    assert norms == 1
    assert refused


PLACES: dict[str, Callable[[nn.Module, str, torch.Tensor], object]] = {
    'attribute': lambda layer, name, value: setattr(layer, name, value),
    'attribute in front of the parameter': lambda layer, name, value: vars(layer).update({name: value}),
    'buffer': lambda layer, name, value: layer.register_buffer(name, value),
    'computed': lambda layer, name, value: setattr(layer, name, value.requires_grad_() * 2),
}


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('name', ['weight', 'bias'])
@pytest.mark.parametrize('index', [0, 1])
def test_weights_in_other_places_than_parameters_fold(index, name, place):
    model = randomize(nn.Sequential(conv(), nn.BatchNorm2d(6)).double()).eval()
    value = 3 * getattr(model[index], name).detach()
    if 'in front' not in place:
        delattr(model[index], name)
    PLACES[place](model[index], name, value)
    with torch.no_grad():
        expected = model(image())
        fused, report = fuse(model)
        assert report.norms_after == 0
        assert worst_error(fused(image()), expected) < EXACT
        assert torch.equal(model(image()), expected)


@pytest.mark.filterwarnings('ignore:Lazy modules')
def test_lazy_layers_stay_until_they_have_a_shape():
    model = nn.Sequential(nn.LazyConv2d(6, 3), nn.LazyBatchNorm2d(), conv(6, 3, 1), nn.LazyBatchNorm2d()).eval()
    assert fuse(model)[1].norms_after == 2
    model(image().float())
    assert fused_and_compared(model)[2] == 0


@pytest.mark.filterwarnings('ignore:.*weight_norm.* is deprecated')
def test_layers_whose_weight_is_computed():
    plain = {'weight_norm': parametrizations.weight_norm, 'spectral_norm': parametrizations.spectral_norm}
    for method in plain.values():
        assert fused_and_compared(nn.Sequential(method(conv()), nn.BatchNorm2d(6)))[2] == 0
    for method in (nn.utils.weight_norm, nn.utils.spectral_norm):
        _, refused, norms = fused_and_compared(nn.Sequential(method(conv()), nn.BatchNorm2d(6)))
        assert norms == 1
        assert 'hooks' in refused[0]
    model = nn.Sequential(nn.utils.weight_norm(conv()), nn.BatchNorm2d(6)).eval()
    model(image().float())
    with pytest.raises(ValueError, match=r'0\.weight is computed from other weights.*remove'):
        fuse(model, copy=True)


class WithStem(Written):
    def forward(self, x):
        return self.b(self.c(x))

    def stem(self, x):
        return self.c(x)


class UsingStem(WithStem):
    def forward(self, x):
        return self.b(self.stem(x))


class Unfollowable(WithStem):
    def stem(self, x):
        return self.c(x) * len(x.tolist())


def _choosing(kind: str) -> Callable[..., Any]:
    def forward(s, x, raw=False, mode='norm'):
        y = s.c(x)
        match kind:
            case 'optional flag':
                other = raw
            case 'optional string':
                other = mode == 'raw'
            case 'isinstance':
                other = isinstance(x, torch.Tensor)
            case 'not isinstance of a proxy':
                other = isinstance(x, torch.Tensor) and not isinstance(x, torch.fx.Proxy)
            case 'is_tensor':
                other = torch.is_tensor(x)
            case 'hasattr':
                other = not hasattr(x, 'tensors')
            case 'isinstance of the norm':
                other = isinstance(s.b, nn.BatchNorm2d)
            case 'gradients':
                other = not torch.is_grad_enabled()
            case 'value':
                other = x.sum() < 1e9
            case 'number':
                try:
                    other = float(x.sum()) < 1e9
                except Exception:
                    other = False
            case 'membership':
                other = (x.sum() < 1e9) in (True,)
            case 'length':
                try:
                    other = len(x) < 1e9
                except Exception:
                    other = False
            case 'chance':
                other = torch.rand(1).item() < 2
        return s.b(y) + y if other else s.b(y)

    if kind.startswith('optional'):
        return forward
    return lambda s, x: forward(s, x)


CHOICES = [
    'optional flag',
    'optional string',
    'isinstance',
    'not isinstance of a proxy',
    'is_tensor',
    'hasattr',
    'isinstance of the norm',
    'gradients',
    'value',
    'number',
    'membership',
    'length',
    'chance',
]


@pytest.mark.parametrize('kind', CHOICES)
def test_a_choice_that_one_trace_would_not_show(kind):
    calls = {'optional flag': {'raw': True}, 'optional string': {'mode': 'raw'}}
    _, _, norms = fused_and_compared(written(_choosing(kind)), calls=lambda m: m(image(), **calls.get(kind, {})))
    assert norms == 1


def _by_type(s, x):
    return s.b(s.c(x)) + s.c(x) if type(x) is torch.Tensor else s.b(s.c(x))


def _by_type_of_the_norm(s, x):
    return s.b(s.c(x)) if type(s.b) is nn.BatchNorm2d else s.b(s.c(x)) + 1


def _by_keywords(s, x, **options):
    return s.c(x) if options.get('raw') else s.b(s.c(x))


def _going_round(s, x):
    while not x.sum() > -1e9:
        x = 2 * x
    return s.b(s.c(x))


def _kept(s, x):
    s.last = s.c(x)
    return s.b(s.last)


def _reaching_in(s, x):
    y = s.seq[0](x)
    for _ in range(x.shape[0]):
        y = y + 0
    return s.seq[1](y) + y


def _reaching_by_loop(s, x):
    for block in s.blocks:
        x = block.b(block.c(x)) + block.c(x)
    return x * len(x)


def _looping_in_loops(s, x):
    outputs = []
    for block in s.blocks:
        for layer in block:
            x = layer(x)
            outputs.append(x)
    return outputs[0] * len(x)


def _subscripting_in_loops(s, x):
    for block in s.blocks:
        x = block[1](block[0](x)) + block[0](x)
    return x * len(x)


def _setting(name: str, value: Callable[[nn.Module], object], of: str = 'b') -> Callable[..., Any]:
    def forward(s, x):
        setattr(getattr(s, of), name, value(s))
        return s.b(s.c(x))

    return forward


def _only_at_first(s, x):
    if getattr(s, 'done', False):
        return s.c(x)
    s.done = True
    return s.b(s.c(x))


def _counting(s, x):
    s.calls = getattr(s, 'calls', 0) + 1
    return s.c(x) if s.calls % 3 == 0 else s.b(s.c(x))


def _swapping(s, x):
    y = s.b(s.c(x))
    s.c, s.d = s.d, s.c
    return y


_CALLS = {'count': 0}


def _counting_outside(s, x):
    _CALLS['count'] += 1
    return s.b(s.c(x)) if _CALLS['count'] % 2 else s.c(x)


def _several_calls(model: nn.Module) -> torch.Tensor:
    state, _CALLS['count'] = dict(vars(model)), 0
    outputs = torch.stack([model(image() * (call + 1)) for call in range(4)])
    vars(model).clear()
    vars(model).update(state)
    return outputs


def square() -> dict[str, nn.Module]:
    return {'c': conv(4, 4), 'b': nn.BatchNorm2d(4)}


STAYS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Any] | None]] = {
    'type': (lambda: written(_by_type), None),
    'type of the norm': (lambda: written(_by_type_of_the_norm), None),
    'keywords': (lambda: written(_by_keywords), lambda m: m(image(), raw=True)),
    'loop without end': (lambda: written(_going_round), None),
    'kept': (lambda: written(_kept), lambda m: (m(image()), getattr(m, 'last', image()))[0]),
    'eps': (lambda: written(lambda s, x: s.b(s.c(x)) + s.b.eps), None),
    'num_features': (lambda: written(lambda s, x: s.b(s.c(x)) * s.b.num_features), None),
    'weight': (lambda: written(lambda s, x: s.b(s.c(x)) + F.conv2d(x, s.c.weight, padding=1)), None),
    'bias': (
        lambda: written(lambda s, x: s.b(s.c(x)) + (s.c.bias is None), c=conv(bias=False), b=nn.BatchNorm2d(6)),
        None,
    ),
    'statistics are set': (lambda: written(_setting('running_mean', lambda s: s.b.running_var)), None),
    'eps is set': (lambda: written(_setting('eps', lambda s: 0.5)), None),
    'weight is set': (
        lambda: written(_setting('weight', lambda s: nn.Parameter(torch.ones(6, 4, 3, 3).double()), of='c')),
        None,
    ),
    'forward is set': (lambda: written(_setting('forward', lambda s: torch.relu)), None),
    'only the first call': (lambda: written(_only_at_first), _several_calls),
    'every third call': (lambda: written(_counting), _several_calls),
    'every second call, counted elsewhere': (lambda: written(_counting_outside), _several_calls),
    'another layer in the next call': (
        lambda: written(_swapping, c=conv(), d=conv(), b=nn.BatchNorm2d(6)),
        lambda m: torch.stack([m(image()) for _ in range(2)]),
    ),
    'another method': (lambda: WithStem(c=conv(), b=nn.BatchNorm2d(6)), lambda m: m.stem(image())),
    'a method that forward uses': (lambda: UsingStem(c=conv(), b=nn.BatchNorm2d(6)), lambda m: m.stem(image())),
    'a method that cannot be followed': (
        lambda: Unfollowable(c=conv(), b=nn.BatchNorm2d(6)),
        lambda m: m.stem(image()),
    ),
    'reached in a sequence': (lambda: written(_reaching_in, seq=nn.Sequential(conv(), nn.BatchNorm2d(6))), None),
    'reached in blocks': (lambda: written(_reaching_by_loop, blocks=nn.ModuleList([WithStem(**square())])), None),
    'loop in a loop': (
        lambda: written(_looping_in_loops, blocks=nn.ModuleList([nn.Sequential(*square().values())])),
        None,
    ),
    'subscript in a loop': (
        lambda: written(_subscripting_in_loops, blocks=nn.ModuleList([nn.Sequential(*square().values())])),
        None,
    ),
    'padded': (lambda: nn.Sequential(nn.BatchNorm2d(4), conv()), None),
    'padded pooling': (lambda: nn.Sequential(conv(), nn.AvgPool2d(3, 2, 1), nn.BatchNorm2d(6)), None),
    'pooling with another divisor': (
        lambda: nn.Sequential(conv(), nn.AvgPool2d(2, divisor_override=3), nn.BatchNorm2d(6)),
        None,
    ),
    'pooling of the largest': (lambda: nn.Sequential(conv(), nn.MaxPool2d(2), nn.BatchNorm2d(6)), None),
    'transposed behind': (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 3)), None),
    'one of two readers padded': (
        lambda: written(
            lambda s, x: (lambda y: s.c(y) + s.d(y))(s.b(x)), b=nn.BatchNorm2d(4), c=conv(size=1), d=conv()
        ),
        None,
    ),
    'stacked with the input': (
        lambda: written(lambda s, x: s.b(torch.cat([s.c(x), x], 1)), c=conv(4, 2), b=nn.BatchNorm2d(6)),
        None,
    ),
    'one layer stacked twice': (
        lambda: written(lambda s, x: s.b(torch.cat([s.c(x), s.c(2 * x)], 1)), c=conv(4, 3), b=nn.BatchNorm2d(6)),
        None,
    ),
    'stacked along another axis': (
        lambda: written(lambda s, x: s.b(torch.cat([s.c(x), s.d(x)], -1)), c=conv(), d=conv(), b=nn.BatchNorm2d(6)),
        None,
    ),
}


@pytest.mark.parametrize('case', STAYS)
def test_stays(case):
    build, calls = STAYS[case]
    _, _, norms = fused_and_compared(build(), calls=calls)
    assert norms == 1


def test_parts_that_are_called_as_a_whole_fold():
    """Even where the code around them cannot be followed."""

    def forward(s, x):
        for block in s.blocks:
            x = block(x)
        return x * len(x)

    blocks = nn.ModuleList([nn.Sequential(*square().values()), WithFlag(**square())])
    _, _, norms = fused_and_compared(written(forward, blocks=blocks))
    assert norms == 0  # nobody gives the flag

    def giving(s, x):
        for block in s.blocks:
            x = block(x, raw=True)
        return x * len(x)

    assert fused_and_compared(written(giving, blocks=nn.ModuleList([WithFlag(**square())])))[2] == 1


class Resettable(Written):
    """A method that only looks at the layer before a norm does not keep it, as timm's ``reset_classifier``."""

    def forward(self, x):
        return self.b(self.c(x))

    def reset(self, count):
        if not isinstance(self.c, nn.Conv2d):
            raise TypeError(count)
        self.last = [self.c.out_channels] * len(self.c.kernel_size) * int(count)


class ResettableNorm(Resettable):
    def reset(self, count):
        return isinstance(self.b, nn.BatchNorm2d) and int(count)


class ResettableLayer(Resettable):
    def reset(self, count):
        return float(count) * self.c.weight


@pytest.mark.parametrize(('kind', 'norms'), [(Resettable, 0), (ResettableNorm, 1), (ResettableLayer, 1)])
def test_what_another_method_only_looks_at_folds_when_it_looks_the_same_afterwards(kind, norms):
    assert fused_and_compared(kind(c=conv(), b=nn.BatchNorm2d(6)))[2] == norms


class WithFlag(Written):
    def forward(self, x, raw=False):
        return self.c(x) if raw else self.b(self.c(x))


def test_a_probe_finds_what_following_the_code_does_not(monkeypatch):
    from repnext_mm.reparam import fold_norms

    original = fold_norms.kernel_with_norm

    def wrong(layer, norm):
        kernel = original(layer, norm)
        return kernel._replace(weight=kernel.weight * (1.1 if layer.kernel_size == (1, 1) else 1))

    monkeypatch.setattr(fold_norms, 'kernel_with_norm', wrong)
    model = nn.Sequential(
        nn.Sequential(conv(), nn.BatchNorm2d(6)), nn.ReLU(), nn.Sequential(conv(6, 6, 1), nn.BatchNorm2d(6))
    )
    randomize(model).double().eval()
    fused, report = fuse(model, probe=image())
    assert report.modules == ('0.0',)
    assert report.refused == ('2.1: folding it changes the output',)
    assert worst_error(fused(image()), model(image())) < EXACT


def test_a_folded_layer_keeps_its_class_and_attributes():
    fused, _, _ = fused_and_compared(_with_attribute())
    assert type(fused.c).__name__ == 'Scaled'
    assert fused.c.pad_by_parent == 1
    assert not fused.c.weight.requires_grad
