"""Curves of mmengine's logs: epochs, iterations, resumed runs."""

from __future__ import annotations

import json

import cv2
import pytest

from repnext_mm.visualize.plot_runs import curve_names, plot_runs
from repnext_mm.visualize.run_logs import read_run


def write(folder, *lines):
    path = folder / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(json.dumps(line) for line in lines) + '\n')
    return path


def trained(iteration, loss, **more):
    return {'lr': 0.1, 'base_lr': 0.1, 'loss': loss, 'time': 1.0, 'iter': iteration, 'step': iteration, **more}


@pytest.fixture
def epochs(tmp_path):
    lines = [trained(10 * i + 22 * e, 1 / (e + i), epoch=e + 1) for e in range(3) for i in (1, 2)]
    lines[4:4] = [{'accuracy/top1': 50.0, 'time': 0.1, 'step': 2}]
    return write(tmp_path / 'epochs/20260101_000000', *lines)


@pytest.fixture
def iterations(tmp_path):
    lines = [trained(50 * i, 1 / i, **{'decode.loss_ce': 1.0}) for i in range(1, 5)]
    tested = {'mIoU': 40.0, 'aAcc': float('nan'), 'step': 200}
    return write(tmp_path / 'iterations/20260101_000000', *lines, tested)


def test_epochs_become_iterations(epochs):
    run = read_run(epochs.parents[2])
    assert run.name == 'epochs'
    assert run.epoch_length == 22
    assert list(run.training['loss']) == [10, 20, 32, 42, 54, 64]
    assert run.validation == {'accuracy/top1': {44: 50.0}}
    assert set(run.training) == {'loss', 'lr'}


def test_iterations_stay(iterations):
    run = read_run(iterations)
    assert run.name == '20260101_000000'
    assert run.epoch_length is None
    assert run.validation['mIoU'] == {200: 40.0}


def test_a_resumed_run_replaces_what_it_repeats(iterations):
    work_dir = iterations.parents[2]
    write(work_dir / '20260102_000000', trained(150, 9.0), trained(250, 8.0))
    write(work_dir / '20260103_000000', {'mIoU': 1.0, 'step': 0})  # a test's log
    run = read_run(work_dir)
    assert run.training['loss'] == {50: 1.0, 100: 0.5, 150: 9.0, 250: 8.0}
    assert not run.validation


def test_what_is_drawn(epochs, iterations, tmp_path):
    runs = [read_run(epochs, name='a'), read_run(iterations, name='b')]
    assert curve_names(runs) == ['loss', 'decode.loss_ce', 'accuracy/top1', 'mIoU', 'aAcc']
    assert curve_names(runs, ['lr', '*/top1']) == ['lr', 'accuracy/top1']
    with pytest.raises(ValueError, match="no curve is called 'mAP': choose from"):
        curve_names(runs, ['loss', 'mAP'])
    wide = cv2.imread(str(plot_runs(runs, tmp_path / 'all.png')))
    narrow = cv2.imread(str(plot_runs(runs[:1], tmp_path / 'one.png', keys=['loss'], title='one')))
    assert wide.std() > 5
    assert wide.shape[1] > 2 * narrow.shape[1]
    with pytest.raises(ValueError, match='cannot be told apart'):
        plot_runs([runs[0], runs[0]], tmp_path / 'twice.png')


def test_broken_logs(tmp_path, iterations):
    with pytest.raises(FileNotFoundError, match='holds no log of a training'):
        read_run(tmp_path / 'nowhere')
    text = iterations.read_text()
    iterations.write_text(text + '{"loss": 0.')  # the last line of a run that was killed
    assert len(read_run(iterations).training['loss']) == 4
    iterations.write_text('{"loss": 0.\n' + text)
    with pytest.raises(ValueError, match='line 1 is no JSON'):
        read_run(iterations)
    iterations.write_text('{"loss": 1}\n')
    with pytest.raises(ValueError, match="line 1 has no 'step'"):
        read_run(iterations)
