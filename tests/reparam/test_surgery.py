"""Replacing modules leaves the model alone, whatever kind of module is on the way."""

from __future__ import annotations

import functools
import types
import weakref
from collections import deque

import pytest
import torch
from torch import nn

from repnext_mm.reparam.surgery import anchored, replaced, skeleton


def test_nothing_to_replace_returns_the_model_itself():
    model = nn.Sequential(nn.Linear(2, 2))
    assert replaced(model, lambda name, module: None) is model


def test_only_the_way_to_a_replacement_is_copied():
    target, other = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))
    model = nn.ModuleDict({'a': nn.Sequential(target), 'b': other})
    new = replaced(model, lambda name, module: nn.Identity() if name == 'a.0' else None)
    assert model['a'][0] is target
    assert isinstance(new['a'][0], nn.Identity)
    assert new['b'] is other


def test_registries_of_a_copy_are_its_own():
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_buffer('table', torch.ones(1))
    new = replaced(model, lambda name, module: nn.Identity() if name == '0' else None)
    new.register_buffer('more', torch.ones(1))
    new.register_module('extra', nn.Identity())
    assert set(dict(model.named_buffers())) == {'table'}
    assert len(model) == 1


def test_an_absent_child_is_kept():
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_module('absent', None)
    new = replaced(model, lambda name, module: nn.Identity() if name == '0' else None)
    assert new.absent is None


class Remembering(nn.Module):
    """Sets attributes of itself and of a part while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.empty = nn.ModuleList()
        self.nothing = None
        self.register_module('absent', None)

    def forward(self, x):
        self.last, self.inner.last = x, x
        return self.inner(x)


def test_a_skeleton_shares_tensors_and_nothing_else():
    model = Remembering()
    clone, clones = skeleton(model)
    assert clone.inner.weight is model.inner.weight
    assert set(clones) == set(model.modules())
    assert not set(clones.values()) & set(clones)
    assert clone.absent is None
    x = torch.ones(1, 2)
    assert torch.equal(clone(x), model.inner(x))
    assert not hasattr(model, 'last')
    assert not hasattr(model.inner, 'last')


def test_compiled_code_is_not_cut_into():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    compiled = torch.compile(nn.Sequential(nn.Linear(2, 2)))
    model = nn.Sequential(scripted, compiled, nn.Linear(2, 2))
    new = replaced(model, lambda _, module: nn.Identity() if isinstance(module, nn.Linear) else None)
    assert new[0] is scripted
    assert new[1] is compiled
    assert isinstance(new[2], nn.Identity)
    _, clones = skeleton(model)
    assert clones[scripted] is scripted
    assert clones[compiled] is compiled


def test_a_graph_module_keeps_its_forward():
    model = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    new = replaced(model, lambda _, module: nn.Identity() if isinstance(module, nn.ReLU) else None)
    x = torch.randn(1, 2)
    assert torch.equal(new(x), model.get_submodule('0')(x))


def stored(key: str, value: object, on: nn.Module) -> None:
    on.__dict__[key] = value  # past nn.Module, which would register a module


REFERENCES = {
    'bound method': lambda part: types.MethodType(lambda self, x: x, part),
    'closure': lambda part: lambda x: part(x),
    'default': lambda part: lambda x, layer=part: layer(x),
    'partial': lambda part: functools.partial(nn.Linear.forward, part),
    'list of dicts': lambda part: [{'layer': part}],
    'deque': lambda part: deque([part]),
    'weak reference': lambda part: weakref.ref(part),
    'object': lambda part: types.SimpleNamespace(inner=types.SimpleNamespace(layer=part)),
}


@pytest.mark.parametrize('kind', REFERENCES)
def test_what_something_else_refers_to_is_left(kind):
    part, other = nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)
    model = nn.Sequential(part, other, nn.Identity())
    stored('held', REFERENCES[kind](part), on=model[2])
    assert anchored(model) == {part: '2.held refers to it, so that a copy would run the old one'}
    new = replaced(model, lambda _, module: nn.Identity() if isinstance(module, nn.Linear) else None)
    assert new[0] is part
    assert isinstance(new[1], nn.Identity)


def test_hooks_refer_too():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Identity())
    model[1].register_forward_hook(lambda module, args, output: model[0](output))
    assert set(anchored(model)) == {model}


def test_what_does_not_lead_back_is_not_anchored():
    model = nn.Sequential(nn.Linear(2, 2))
    model.names, model.scale, model.function = ['0', 'weight'], {'a': torch.ones(2)}, len
    model.handle = model[0].register_forward_hook(lambda module, args, output: None)
    empty = None

    def early(x):
        return empty_later(x)

    model.early = early
    assert anchored(model) == {}
    empty_later = empty


def test_compiled_in_place():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0]._compiled_call_impl = model[0]._call_impl  # what compile() sets
    assert anchored(model)[model[0]] == 'it was compiled in place'
    assert replaced(model, lambda _, module: nn.Identity() if isinstance(module, nn.Linear) else None) is model
