"""mmengine's FlexibleRunner on two processes: what runs on the CPU, and what its checkpoints are good for."""

import pytest
import torch

from tests.reliability.jobs import ROOT, metrics_of, run_job, write_config

pytestmark = pytest.mark.slow

FLEXIBLE = "runner_type = 'FlexibleRunner'\n"
PLAIN = "optim_wrapper = dict(_delete_=True, type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))\n"
CONTIGUOUS = "default_hooks['memory_format'] = dict(type='MemoryFormatHook', memory_format='contiguous')\n"
SHARDED = FLEXIBLE + PLAIN + CONTIGUOUS + "strategy = dict(type='FSDPStrategy')\n"


def weights(path):
    """Without the prefix that mmengine's DDPStrategy leaves before the names; our reader knows it."""
    state = torch.load(path, weights_only=False)['state_dict']
    return {name.removeprefix('module.'): value for name, value in state.items()}


def test_data_parallel_strategy_trains_the_same_weights_and_resumes(tmp_path):
    train = ROOT / 'tools/dist_train.sh'
    plain = write_config(tmp_path, 'classification', name='plain')
    run_job(train, plain, 2, cwd=tmp_path)
    flexible = write_config(tmp_path, 'classification', name='flexible', more=FLEXIBLE)
    run_job(train, flexible, 2, cwd=tmp_path)
    runs = tmp_path / 'work_dirs'
    resume = ['--resume', runs / 'flexible/epoch_2.pth', '--work-dir', runs / 'resumed']
    output = run_job(train, flexible, 2, *resume, cwd=tmp_path)
    assert 'resumed epoch: 2, iter: 8' in output
    one, other, resumed = (runs / name / 'epoch_3.pth' for name in ('plain', 'flexible', 'resumed'))
    expected = weights(one)
    for found in (weights(other), weights(resumed)):
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    run_job(ROOT / 'tools/test.py', plain, one, '--work-dir', tmp_path / 'one', cwd=tmp_path)
    run_job(ROOT / 'tools/test.py', flexible, other, '--work-dir', tmp_path / 'other', cwd=tmp_path)
    assert metrics_of(tmp_path / 'one') == metrics_of(tmp_path / 'other')


def test_shards_train_the_same_weights(tmp_path):
    train = ROOT / 'tools/dist_train.sh'
    plain = write_config(tmp_path, 'classification', name='plain', more=PLAIN + CONTIGUOUS)
    run_job(train, plain, 2, cwd=tmp_path)
    sharded = write_config(tmp_path, 'classification', name='sharded', more=SHARDED)
    run_job(train, sharded, 2, cwd=tmp_path)
    one, other = (tmp_path / 'work_dirs' / name / 'epoch_3.pth' for name in ('plain', 'sharded'))
    expected, found = weights(one), weights(other)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    run_job(ROOT / 'tools/test.py', sharded, other, cwd=tmp_path)  # torch leaves Python attributes on the tensors


def test_shards_refuse_to_resume_in_one_sentence(tmp_path):
    sharded = write_config(tmp_path, 'classification', name='sharded', more=SHARDED)
    begun = tmp_path / 'work_dirs' / 'sharded' / 'epoch_1.pth'
    begun.parent.mkdir(parents=True)
    begun.touch()
    output = run_job(ROOT / 'tools/train.py', sharded, '--resume', cwd=tmp_path, expect=1)
    assert "error: strategy.type='FSDPStrategy' cannot read a checkpoint" in output
    assert 'Traceback' not in output
