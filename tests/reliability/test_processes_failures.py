"""A process that dies, raises or hangs ends its job: with a message, in bounded time, leaving nothing running."""

import json
import time

import pytest
import torch

from tests.reliability.faults import MESSAGE
from tests.reliability.jobs import ANY_ERROR, ROOT, fault, free_port, run_job, write_config

pytestmark = pytest.mark.slow

SRUN = """#!/usr/bin/env bash
# Starts the tasks on this machine, as srun does on its nodes, and ends with the worst of their codes.
while [[ $1 == --* ]]; do
    case $1 in --ntasks=*) tasks=${1#*=} ;; esac
    shift
done
for ((task = 0; task < tasks; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=$tasks SLURM_NODELIST=localhost "$@" &
    pids+=($!)
done
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit "$code"
"""


@pytest.fixture
def slurm(tmp_path):
    """Environment in which `srun` runs the tasks here."""
    srun = tmp_path / 'bin' / 'srun'
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    return {'PATH': f'{srun.parent}:/usr/bin:/bin', 'GPUS': '2', 'MASTER_ADDR': '127.0.0.1', 'PORT': free_port()}


@pytest.mark.parametrize(
    ('how', 'said', 'seconds'),
    [
        ('kill', ['Signal 9 (SIGKILL) received by PID', 'local_rank: 1', 'tools/train.py FAILED'], 60),
        ('raise', [f'RuntimeError: {MESSAGE}', 'local_rank: 1', 'tools/train.py FAILED'], 60),
        ('stop', ['Timed out waiting', 'tools/train.py FAILED'], 30 + 30 + 60),  # timeout, torchrun's grace, the rest
    ],
)
def test_under_torchrun(how, said, seconds, tmp_path):
    lines, marker = fault(tmp_path, how, iteration=2)
    config = write_config(tmp_path, 'classification', more=lines + 'env_cfg = dict(dist_cfg=dict(timeout=30))\n')
    output = run_job(ROOT / 'tools/dist_train.sh', config, 2, cwd=tmp_path, expect=1)
    assert time.time() - marker.stat().st_mtime < seconds
    for sentence in said:
        assert sentence in output
    assert not list((tmp_path / 'work_dirs').rglob('epoch_*.pth'))


def test_slurm_trains_with_two_tasks(tmp_path, slurm):
    config = write_config(tmp_path, 'classification')
    output = run_job(ROOT / 'tools/slurm_train.sh', 'part', 'job', config, cwd=tmp_path, **slurm)
    assert 'Distributed launcher: slurm' in output
    assert 'GPU number: 2' in output
    assert output.count('Saving checkpoint at') == 3


@pytest.mark.parametrize('how', ['kill', 'raise'])
def test_without_an_agent_the_others_notice(how, tmp_path, slurm):
    """As when srun does not end the other tasks: they end by themselves when their neighbor's line is cut."""
    lines, marker = fault(tmp_path, how, iteration=2)
    config = write_config(tmp_path, 'classification', more=lines)
    output = run_job(ROOT / 'tools/slurm_train.sh', 'part', 'job', config, cwd=tmp_path, expect=ANY_ERROR, **slurm)
    assert time.time() - marker.stat().st_mtime < 60
    assert 'Connection closed by peer' in output or 'Connection reset by peer' in output
    assert (MESSAGE in output) == (how == 'raise')


def test_a_killed_process_is_replaced_and_the_job_ends_as_if_nothing_had_happened(tmp_path):
    """Elastic restart: torchrun restarts all processes, and `--resume` finds the last whole checkpoint."""
    lines, marker = fault(tmp_path, 'kill', iteration=6)  # in the second of three epochs
    config = write_config(tmp_path, 'classification', more=lines)
    output = run_job(ROOT / 'tools/dist_train.sh', config, 2, '--resume', cwd=tmp_path, RESTARTS='1')
    assert marker.exists()
    assert 'Signal 9 (SIGKILL)' in output or 'exitcode: -9' in output
    assert output.count('resumed epoch: 1, iter: 4') == 1
    assert 'Saving checkpoint at 3 epochs' in output
    calm = write_config(tmp_path, 'classification', name='calm')
    run_job(ROOT / 'tools/dist_train.sh', calm, 2, cwd=tmp_path)
    one, other = (weights(tmp_path / 'work_dirs' / name / 'epoch_3.pth') for name in ('classification', 'calm'))
    assert all(torch.equal(one[key], value) for key, value in other.items())


@pytest.mark.parametrize('tool', ['dist_train.sh', 'dist_test.sh'])
def test_no_thread_of_gloo_outlives_python(tool, tmp_path):
    """One that drops a tensor while Python ends aborts the process, now and then, and so fails a job that was done."""
    more = "custom_imports = dict(imports=['repnext_mm', 'tests.reliability.last_words'], allow_failed_imports=False)\n"
    config = write_config(tmp_path, 'classification', more=more)
    checkpoint = []
    if tool == 'dist_test.sh':
        run_job(ROOT / 'tools/train.py', config, '--cfg-options', 'train_cfg.max_epochs=1', cwd=tmp_path, RANK='0')
        checkpoint = [tmp_path / 'work_dirs/classification/epoch_1.pth']
    run_job(ROOT / 'tools' / tool, config, *checkpoint, 2, cwd=tmp_path)
    for rank in (0, 1):
        held = json.loads((tmp_path / f'last_words_{rank}.json').read_text())
        assert held == {'gloo': [], 'models': []}


def test_two_processes_resume_where_they_stopped(tmp_path):
    """Iterations: a run of four equals two and two."""
    run = ROOT / 'tools/dist_train.sh'
    whole = write_config(tmp_path, 'segmentation', name='whole')
    run_job(run, whole, 2, cwd=tmp_path)
    halves = write_config(tmp_path, 'segmentation', name='halves')
    work_dir = tmp_path / 'work_dirs' / 'halves'
    run_job(run, halves, 2, '--cfg-options', 'train_cfg.max_iters=2', cwd=tmp_path)
    assert (work_dir / 'iter_2.pth').is_file()
    output = run_job(run, halves, 2, '--resume', cwd=tmp_path)
    assert 'resumed epoch: 0, iter: 2' in output
    one, other = weights(tmp_path / 'work_dirs/whole/iter_4.pth'), weights(work_dir / 'iter_4.pth')
    assert all(torch.equal(one[key], value) for key, value in other.items())


def weights(path):
    return torch.load(path, weights_only=False)['state_dict']
