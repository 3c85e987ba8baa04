"""One group per setting: the same rates, decays and steps as mmengine's group per parameter."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper

from repnext_mm import RepNeXt
from repnext_mm.training.param_groups import joined

ARCH = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}
RULES = {
    'flat': {'flat_decay_mult': 0.0},
    'norms, biases': {'norm_decay_mult': 0.0, 'bias_decay_mult': 0.5, 'bias_lr_mult': 2.0},
    'keys': {'custom_keys': {'stem': {'lr_mult': 0.1}, 'stages.3': {'lr_mult': 0.5, 'decay_mult': 0.0}}},
}


def wrapper(model, rules, **optimizer):
    settings = {'type': 'AdamW', 'lr': 0.01, 'weight_decay': 0.1, **optimizer}
    return build_optim_wrapper(model, {'type': 'OptimWrapper', 'optimizer': settings, **rules})


def settings_of(model, optim_wrapper):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group['lr'], group['weight_decay'])
        for group in optim_wrapper.optimizer.param_groups
        for parameter in group['params']
    }


@pytest.mark.parametrize('rules', RULES.values(), ids=RULES)
@pytest.mark.parametrize('frozen', [-1, 1])
def test_the_same_settings_in_fewer_groups_step_alike(rules, frozen):
    model = RepNeXt(ARCH, frozen_stages=frozen).train()
    image = torch.randn(2, 3, 64, 64)
    found, weights = [], []
    for options in ({}, {'constructor': 'JoinedGroupsConstructor'}):
        twin = copy.deepcopy(model)
        own = wrapper(twin, {'paramwise_cfg': rules, **options}, foreach=True)
        found.append(settings_of(twin, own))
        for _ in range(3):
            own.update_params(sum(feature.square().mean() for feature in twin(image)))
        weights.append(twin.state_dict())
        groups = own.optimizer.param_groups
    assert found[0] == found[1]
    assert len(groups) == len(set(found[1].values())) <= 4
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_without_rules_it_is_one_group_as_before():
    model = RepNeXt(ARCH)
    own = wrapper(model, {'constructor': 'JoinedGroupsConstructor'})
    assert [len(group['params']) for group in own.optimizer.param_groups] == [len(list(model.parameters()))]


def test_groups_keep_their_order_and_any_setting_parts_them():
    groups = [
        {'params': ['a'], 'lr': 1},
        {'params': ['b']},
        {'params': ['c'], 'lr': 1},
        {'params': ['d'], 'lr': 1, 'betas': (0.9, 0.99)},
        {'params': ['e', 'f']},
    ]
    assert joined(groups) == [
        {'params': ['a', 'c'], 'lr': 1},
        {'params': ['b', 'e', 'f']},
        {'params': ['d'], 'lr': 1, 'betas': (0.9, 0.99)},
    ]
    assert groups[0]['params'] == ['a']
