"""tools/plot_logs.py and tools/plot_zoo.py as a user runs them."""

from __future__ import annotations

import json
import runpy

import cv2
import pytest

from tests.tools.running import ROOT


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(tool, *words):
        path = str(ROOT / f'tools/{tool}.py')
        monkeypatch.setattr('sys.argv', [path, *words])
        runpy.run_path(path, run_name='__main__')

    return call


def test_logs(run, tmp_path, capsys):
    log = tmp_path / 'run/20260101_000000/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('\n'.join(json.dumps({'loss': 1 / i, 'iter': i, 'step': i}) for i in range(1, 9)))
    run('plot_logs', 'run', str(log), '--names', 'a', 'b', '--keys', 'loss', '--out', 'logs.png')
    assert capsys.readouterr().out == 'wrote logs.png\n'
    assert cv2.imread('logs.png').std() > 5


def test_zoo(run, capsys):
    run('plot_zoo', '--metrics', 'top1', 'miou')
    assert capsys.readouterr().out == 'wrote work_dirs/visualize/zoo.png\n'
    assert cv2.imread('work_dirs/visualize/zoo.png').std() > 5


def test_epochs(run, capsys):
    run('plot_zoo', '--against', 'epochs', '--out', 'lengths.png')
    assert capsys.readouterr().out == 'wrote lengths.png\n'
    assert cv2.imread('lengths.png').std() > 5


def test_logs_of_the_authors(run):
    logs = sorted(map(str, (ROOT / 'docs/reported').glob('ablation_*.csv')))
    run('plot_logs', *logs, '--out', 'ablation.png')
    assert cv2.imread('ablation.png').std() > 5


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (('plot_logs', 'nowhere'), "error: 'nowhere' holds no log of a training"),
        (('plot_logs', 'a', 'b', '--names', 'c'), 'error: 1 names for 2 runs: give one for each'),
        (('plot_zoo', 'nowhere.json'), 'error: no benchmark record at nowhere.json'),
    ],
    ids=['log', 'names', 'record'],
)
def test_errors_are_one_sentence(run, words, message):
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert str(stopped.value).startswith(message)
