"""What our training tool adds to a config that does not inherit ours: each hook with a line that names it."""

import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook

from repnext_mm.apis.train import add_missing_hooks

OTHERS = dict(strict_load=dict(type='StrictLoadHook'), memory=dict(type='ReturnMemoryHook'))


@pytest.mark.parametrize('kind', ['CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook])
def test_the_stock_hook_is_replaced_and_keeps_its_arguments(kind):
    config = Config(dict(default_hooks=dict(checkpoint=dict(type=kind, interval=3, max_keep_ckpts=2), **OTHERS)))
    (note,) = add_missing_hooks(config)
    assert 'AtomicCheckpointHook saves in the place of CheckpointHook' in note
    assert config.default_hooks.checkpoint == dict(type='AtomicCheckpointHook', interval=3, max_keep_ckpts=2)
    assert add_missing_hooks(config) == []


def test_mmengines_default_is_replaced_too():
    config = Config(dict(custom_hooks=[dict(type='CheckpointHook', interval=7)]))
    assert len(add_missing_hooks(config)) == 4
    assert config.default_hooks.checkpoint.type == 'AtomicCheckpointHook'
    assert config.custom_hooks == [dict(type='AtomicCheckpointHook', interval=7)]


def test_each_addition_is_named_and_can_be_refused():
    config = Config(dict(default_hooks=dict(checkpoint=None, mine=dict(type='MyCheckpointHook'))))
    strict, memory = add_missing_hooks(config)
    assert 'StrictLoadHook is added as default_hooks.strict_load' in strict
    assert 'ReturnMemoryHook is added as default_hooks.memory' in memory
    assert config.default_hooks == dict(checkpoint=None, mine=dict(type='MyCheckpointHook'), **OTHERS)
    refused = dict(checkpoint=None, strict_load=None, memory=None)
    config = Config(dict(default_hooks=refused))
    assert add_missing_hooks(config) == []
    assert config.default_hooks == refused


def test_hooks_that_are_there_are_not_added_again():
    own = [dict(type='StrictLoadHook', prefix='net.'), dict(type='ReturnMemoryHook', interval=9)]
    config = Config(dict(default_hooks=dict(checkpoint=None), custom_hooks=own))
    assert add_missing_hooks(config) == []
    assert config.custom_hooks == own


def test_a_fixed_seed_seeds_every_step_and_sample():
    inner = dict(type='DefaultSampler', shuffle=True)
    hooks = dict(checkpoint=None, **OTHERS)
    config = Config(dict(randomness=dict(seed=0), train_dataloader=dict(sampler=inner), default_hooks=hooks))
    for count in (2, 0):  # the second changes nothing
        assert len(add_missing_hooks(config)) == count
        assert config.default_hooks.seeding == dict(type='SeedStepsHook')
        assert config.train_dataloader.sampler == dict(type='SeededSampler', sampler=inner)


@pytest.mark.parametrize('randomness', [None, {}, dict(deterministic=True), dict(seed=None)])
def test_without_a_seed_nothing_is_seeded(randomness):
    config = Config(dict(randomness=randomness, train_dataloader=dict(sampler=dict(type='DefaultSampler'))))
    add_missing_hooks(config)
    assert 'seeding' not in config.default_hooks
    assert config.train_dataloader.sampler.type == 'DefaultSampler'
