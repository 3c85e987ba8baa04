"""Two machines, played by two launchers on one: fixed ranks, and ranks that are agreed on again after a failure."""

import pytest
import torch

from tests.reliability.jobs import ROOT, end_job, fault, free_port, run_job, start_job, write_config

pytestmark = pytest.mark.slow


def run_nodes(config, *more, cwd, expect=0, **environment):
    """The output of each of two nodes with one process."""
    environment |= {'NNODES': '2', 'PORT': free_port()}
    command = [ROOT / 'tools/dist_train.sh', config, 1, *more]
    jobs = [start_job(*command, cwd=cwd, log=f'node_{node}.log', NODE_RANK=str(node), **environment) for node in (0, 1)]
    try:
        for job in jobs:
            job.wait(400)
    finally:
        outputs = [
            end_job(job, cwd=cwd, log=f'node_{node}.log', expect=expect, within=10) for node, job in enumerate(jobs)
        ]
    return outputs


@pytest.fixture(scope='module')
def calm(tmp_path_factory):
    """Weights after training on one machine, by two processes."""
    folder = tmp_path_factory.mktemp('calm')
    config = write_config(folder, 'classification')
    run_job(ROOT / 'tools/dist_train.sh', config, 2, cwd=folder)
    return weights(folder)


def weights(folder):
    return torch.load(folder / 'work_dirs/classification/epoch_3.pth', weights_only=False)['state_dict']


def test_two_nodes_train_what_one_with_two_processes_does(tmp_path, calm):
    first, second = run_nodes(write_config(tmp_path, 'classification'), cwd=tmp_path)
    assert first.count('Saving checkpoint at') == 3
    assert '(train)' not in second
    found = weights(tmp_path)
    assert all(torch.equal(found[key], value) for key, value in calm.items())


def test_a_process_that_dies_on_one_node_restarts_both(tmp_path, calm):
    lines, marker = fault(tmp_path, 'kill', iteration=6)
    config = write_config(tmp_path, 'classification', more=lines)
    outputs = ''.join(run_nodes(config, '--resume', cwd=tmp_path, RESTARTS='2'))
    assert marker.exists()
    assert outputs.count('resumed epoch: 1, iter: 4') == 1
    found = weights(tmp_path)
    assert all(torch.equal(found[key], value) for key, value in calm.items())


def test_a_process_that_dies_ends_both_nodes(tmp_path):
    lines, marker = fault(tmp_path, 'kill', iteration=2)
    first, second = run_nodes(write_config(tmp_path, 'classification', more=lines), cwd=tmp_path, expect=1)
    assert marker.exists()
    assert 'FAILED' in first
    assert 'FAILED' in second
