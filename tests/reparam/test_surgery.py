"""Replacing modules leaves the model alone, whatever kind of module is on the way."""

from __future__ import annotations

import torch
from torch import nn

from repnext_mm.reparam import replaced


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
