"""What our training tool adds to a config, so that a run survives kills."""

import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook

from repnext_mm.apis.survive import keep_checkpoints_whole, repeat_randomness
from tests.tools.running import ROOT


@pytest.mark.parametrize('kind', ['CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook])
def test_the_stock_hook_is_replaced_and_keeps_its_arguments(kind):
    config = Config(dict(default_hooks=dict(checkpoint=dict(type=kind, interval=3, max_keep_ckpts=2))))
    assert len(keep_checkpoints_whole(config)) == 1
    assert config.default_hooks.checkpoint == dict(type='AtomicCheckpointHook', interval=3, max_keep_ckpts=2)
    assert keep_checkpoints_whole(config) == []


def test_mmengines_default_is_replaced_too():
    config = Config(dict(custom_hooks=[dict(type='CheckpointHook', interval=7)]))
    assert len(keep_checkpoints_whole(config)) == 1
    assert config.default_hooks.checkpoint.type == 'AtomicCheckpointHook'
    assert config.custom_hooks == [dict(type='AtomicCheckpointHook', interval=7)]


def test_other_hooks_and_none_are_left_alone():
    hooks = dict(checkpoint=None, mine=dict(type='MyCheckpointHook'))
    config = Config(dict(default_hooks=hooks))
    assert keep_checkpoints_whole(config) == []
    assert config.default_hooks == hooks


@pytest.mark.parametrize('name', ['mask_rcnn_repnext_m0_coco', 'semantic_fpn_repnext_m0_ade20k', 'repnext_m0_imagenet'])
def test_our_configs_name_it(name):
    config = Config.fromfile(str(ROOT / f'configs/{name}.py'))
    assert config.default_hooks.checkpoint.type == 'AtomicCheckpointHook'


def test_a_fixed_seed_seeds_every_step_and_sample():
    inner = dict(type='DefaultSampler', shuffle=True)
    config = Config(dict(randomness=dict(seed=0), train_dataloader=dict(sampler=inner)))
    for _ in range(2):  # the second changes nothing
        assert len(repeat_randomness(config)) == 1
        assert config.custom_hooks == [dict(type='SeedStepsHook')]
        assert config.train_dataloader.sampler == dict(type='SeededSampler', sampler=inner)


@pytest.mark.parametrize('randomness', [None, {}, dict(deterministic=True), dict(seed=None)])
def test_without_a_seed_nothing_changes(randomness):
    config = Config(dict(randomness=randomness, train_dataloader=dict(sampler=dict(type='DefaultSampler'))))
    assert repeat_randomness(config) == []
    assert 'custom_hooks' not in config
    assert config.train_dataloader.sampler.type == 'DefaultSampler'
