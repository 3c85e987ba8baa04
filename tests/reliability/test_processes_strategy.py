"""What a FlexibleRunner's strategy gets from a config, and what is refused."""

import pytest
from mmengine.config import Config

from repnext_mm.apis import launch

FLEXIBLE = dict(runner_type='FlexibleRunner')


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(launch, 'start_gloo', lambda config: None)


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(launch, 'get_device', lambda: 'cuda')


def fitted(**fields):
    config = Config({'model': {}, 'launcher': 'pytorch', **fields})
    return config, launch.fit_to_machine(config)


def test_the_wrapper_of_a_config_is_kept_on_the_cpu(on_cpu):
    config, _ = fitted(find_unused_parameters=True)
    assert config.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=True, device_ids=None
    )
    config, _ = fitted(model_wrapper_cfg=dict(type='Mine', static_graph=True, device_ids=[0]))
    assert config.model_wrapper_cfg.type == 'Mine'
    assert config.model_wrapper_cfg.static_graph is True
    assert config.model_wrapper_cfg.device_ids is None


def test_a_strategy_gets_what_a_runner_reads(on_gpu):
    config, notes = fitted(**FLEXIBLE, sync_bn='torch', find_unused_parameters=True)
    assert config.strategy.type == 'DDPStrategy'
    assert config.strategy.sync_bn == 'torch'
    assert config.strategy.model_wrapper.find_unused_parameters is True
    assert config.strategy.model_wrapper.broadcast_buffers is False
    assert 'device_ids' not in config.strategy.model_wrapper
    assert notes == []


def test_what_a_strategy_says_itself_counts(on_gpu):
    own = dict(type='DDPStrategy', sync_bn='mmcv', model_wrapper=dict(type='Mine'))
    config, _ = fitted(**FLEXIBLE, sync_bn='torch', strategy=own)
    assert config.strategy == own


def test_a_strategy_on_the_cpu_gets_no_gpu_and_no_synchronized_norms(on_cpu):
    config, notes = fitted(**FLEXIBLE, sync_bn='torch')
    assert config.strategy.model_wrapper.device_ids is None
    assert config.strategy.sync_bn is None
    assert [what for what in ('batch norms', 'gloo') if not any(what in note for note in notes)] == []
    assert len(notes) == 2


def test_one_process_without_a_strategy_says_nothing(on_gpu):
    config, notes = fitted(**FLEXIBLE, launcher='none')
    assert 'strategy' not in config
    assert notes == []


@pytest.mark.parametrize('strategy', [dict(type='DDPStrategy'), dict(type='FSDPStrategy')], ids=lambda s: s['type'])
def test_one_process_needs_no_strategy(on_gpu, strategy):
    config, notes = fitted(**FLEXIBLE, launcher='none', strategy=strategy)
    assert config.strategy is None
    assert notes == [f'One process: it trains on its own device, without {strategy["type"]}.']


def test_other_strategies_are_left_alone(on_gpu):
    own = dict(type='DeepSpeedStrategy', fp16=dict(enabled=True))
    config, notes = fitted(**FLEXIBLE, sync_bn='torch', strategy=own)
    assert config.strategy == own
    assert notes == []


def test_without_a_flexible_runner_nothing_changes(on_gpu):
    config, notes = fitted(sync_bn='torch')
    assert 'strategy' not in config
    assert notes == []


def test_shards_on_the_cpu_get_no_gpu(on_cpu):
    config, _ = fitted(**FLEXIBLE, strategy=dict(type='FSDPStrategy', model_wrapper=dict(use_orig_params=True)))
    assert config.strategy.model_wrapper == dict(
        type='MMFullyShardedDataParallel', device_id='cpu', use_orig_params=True
    )
    assert config.strategy.state_dict_cfg.state_dict_config == dict(type='FullStateDictConfig', rank0_only=True)


def test_shards_say_what_they_do_not_do(on_gpu):
    config, notes = fitted(**FLEXIBLE, sync_bn='torch', strategy=dict(type='FSDPStrategy'))
    assert config.strategy == dict(type='FSDPStrategy', state_dict_cfg='full')
    assert notes == ["strategy.type='FSDPStrategy' does not synchronize batch norms: sync_bn is not used."]


@pytest.mark.parametrize(
    ('asked', 'reason'),
    [
        (dict(resume=True), 'cannot read a checkpoint'),
        (dict(load_from='a.pth'), 'cannot read a checkpoint'),
        (dict(optim_wrapper=dict(clip_grad=dict(max_norm=1))), 'would clip the gradients of each shard'),
        (dict(optim_wrapper=dict(type='AdaptiveClipOptimWrapper')), 'would clip the gradients of each shard'),
    ],
    ids=['resume', 'load', 'clip', 'clip adaptively'],
)
def test_what_shards_cannot_do_is_refused(asked, reason):
    config = Config({**FLEXIBLE, **asked, 'strategy': dict(type='FSDPStrategy')})
    with pytest.raises(ValueError, match=f"strategy.type='FSDPStrategy' {reason}"):
        launch.check_strategy(config)
    config.strategy.type = 'DDPStrategy'
    launch.check_strategy(config)


def test_shards_without_these_pass(on_gpu):
    plain = dict(strategy=dict(type='FSDPStrategy'), optim_wrapper=dict(type='OptimWrapper', clip_grad=None))
    launch.check_strategy(Config({**FLEXIBLE, **plain}))


def test_shards_need_a_gpu_in_old_torch(on_cpu, monkeypatch):
    monkeypatch.delattr(launch.torch.cpu, 'current_device', raising=False)
    with pytest.raises(ValueError, match="strategy.type='FSDPStrategy' needs a GPU with torch "):
        launch.check_strategy(Config({**FLEXIBLE, 'strategy': dict(type='FSDPStrategy')}))


@pytest.mark.parametrize('launcher', ['mpi', 'slurm'])
def test_somebody_must_say_where_to_meet(on_cpu, monkeypatch, launcher):
    for name in launch._RANKS[launcher]:
        monkeypatch.setenv(name, '0')
    monkeypatch.delenv('MASTER_ADDR', raising=False)
    with pytest.raises(ValueError, match=f"launcher='{launcher}' needs MASTER_ADDR in the environment"):
        launch.set_launcher(Config(), launcher)
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    launch.set_launcher(Config(), launcher)


def test_slurm_with_gpus_finds_the_first_machine_itself(on_gpu, monkeypatch):
    for name in launch._RANKS['slurm']:
        monkeypatch.setenv(name, '0')
    monkeypatch.delenv('MASTER_ADDR', raising=False)
    config = Config()
    launch.set_launcher(config, 'slurm')
    assert config.launcher == 'slurm'
