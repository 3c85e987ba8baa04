"""Launchers, and what a machine without a GPU cannot do."""

import pytest
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper

from repnext_mm.apis import launch
from repnext_mm.apis.launch import check_precision
from repnext_mm.training.adaptive_clip import AdaptiveClipAmpOptimWrapper


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(launch, 'find_spec', lambda _: None)


def config(**fields):
    model = dict(backbone=dict(norm_cfg=dict(type='SyncBN')), heads=[dict(norm_cfg=dict(type='MMSyncBN'))])
    return Config(dict(model=model, **fields))


def test_synchronized_norms_are_dropped_with_one_line(on_cpu):
    fitted = config(sync_bn='torch', launcher='none')
    assert len(launch.fit_to_machine(fitted)) == 1
    assert fitted.model.backbone.norm_cfg.type == fitted.model.heads[0].norm_cfg.type == 'BN'
    assert fitted.sync_bn is None
    assert 'model_wrapper_cfg' not in fitted


def test_nothing_to_say(on_cpu):
    plain = Config(dict(model=dict(norm_cfg=dict(type='BN'))))
    assert launch.fit_to_machine(plain) == []


@pytest.mark.parametrize('installed', [True, False])
def test_cocos_metric_is_the_fast_one_where_that_is_installed(installed, on_cpu, monkeypatch):
    monkeypatch.setattr(launch, 'find_spec', lambda _: installed or None)
    several = [dict(type='mmdet.CocoMetric', metric='bbox'), dict(type='DumpResults')]
    made = Config(dict(model={}, val_evaluator=dict(type='CocoMetric'), test_evaluator=several))
    notes = launch.fit_to_machine(made)
    assert [note.partition(':')[0] for note in notes] == ['val_evaluator', 'test_evaluator'] * installed
    assert made.val_evaluator.type == ('FastCocoMetric' if installed else 'CocoMetric')
    kind = 'FastCocoMetric' if installed else 'mmdet.CocoMetric'
    assert made.test_evaluator == [dict(type=kind, metric='bbox'), dict(type='DumpResults')]


def test_with_a_gpu_nothing_changes(monkeypatch):
    monkeypatch.setattr(launch, 'get_device', lambda: 'cuda')
    kept = config(sync_bn='torch', launcher='pytorch')
    assert launch.fit_to_machine(kept) == []
    assert kept.sync_bn == 'torch'
    assert kept.model.backbone.norm_cfg.type == 'SyncBN'


@pytest.mark.parametrize(
    ('launcher', 'variable'), [('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID'), ('mpi', 'OMPI_COMM_WORLD_RANK')]
)
def test_launcher_that_did_not_start_this_process(monkeypatch, launcher, variable):
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ValueError, match=f"launcher='{launcher}' needs the environment variable {variable}"):
        launch.set_launcher(config(), launcher)


def test_unknown_launcher():
    with pytest.raises(ValueError, match="launcher='bsub' is unknown"):
        launch.set_launcher(config(), 'bsub')


AMP = [
    'AmpOptimWrapper',
    'mmengine.AmpOptimWrapper',
    'mmengine.optim.AmpOptimWrapper',
    AmpOptimWrapper,
    'AdaptiveClipAmpOptimWrapper',
    AdaptiveClipAmpOptimWrapper,
]


@pytest.mark.parametrize('kind', AMP, ids=str)
def test_mixed_precision_of_a_config_needs_a_gpu(kind, monkeypatch):
    monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
    name = str(getattr(kind, '__name__', kind)).rpartition('.')[2]
    for wrapper, key in (
        (dict(type=kind), 'optim_wrapper'),
        (dict(constructor='Own', generator=dict(type=kind)), r'optim_wrapper\.generator'),
    ):
        config = Config(dict(optim_wrapper=wrapper))
        way_out = name.replace('Amp', 'Bfloat16')
        words = rf"{key}\.type='{name}' trains in mixed precision.* a GPU.*none was found.* set {key}\.type='{way_out}'"
        with pytest.raises(ValueError, match=words):
            check_precision(config, stages=('train', 'val'))
        check_precision(config, stages=('test',))
        with monkeypatch.context() as gpu:
            gpu.setattr(launch, 'get_device', lambda: 'cuda')
            check_precision(config, stages=('train', 'val'))


@pytest.mark.parametrize('stage', ['val', 'test'])
def test_half_precision_of_a_loop_needs_a_gpu(stage, monkeypatch):
    monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
    config = Config({f'{stage}_cfg': dict(type='Any', fp16=True)})
    with pytest.raises(ValueError, match=rf'{stage}_cfg\.fp16=True needs a GPU'):
        check_precision(config, stages=(stage,))
    check_precision(Config({f'{stage}_cfg': dict(fp16=False)}), stages=(stage,))
    check_precision(Config(dict(optim_wrapper=dict(type='OptimWrapper'))), stages=('train', 'val', 'test'))
