"""Nothing piles up in a process that trains, validates and tests for long; the judge of that sees what piles up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from repnext_mm.hooks import memory
from tests.reliability.long_run import COUNTED, LEAST_JUDGED, LEAST_WARM_UP, MOST_GROWTH, draw, held, judge
from tests.tools.running import ROOT, run_tool


def cycles(count=40, *, memory_mb=1000.0, noise_mb=8.0, **last):
    """Samples of a run that holds steady; ``last`` replaces what the second half has."""
    noise = np.random.default_rng(0).normal(0, noise_mb, count)
    return [
        {
            'minute': 1.5 * index,
            'cycle': index,
            'iteration': 4 * index,
            'box_ap_trained': None if index == 5 else 0.01 * index,
            'box_ap_fused': None if index == 5 else 0.01 * index,
            'memory_mb': memory_mb - 100 * (index == 0) + noise[index],
            'handles': 30,
            'threads': 5,
            'processes': 0,
            **(last if index > count / 2 else {}),
        }
        for index in range(count)
    ]


def test_a_steady_run_passes():
    verdict = judge(cycles())
    assert verdict['failures'] == []
    assert abs(verdict['growth']) < 0.01
    assert verdict['cycles'] == 40
    assert verdict['warm_up'] == 8


def test_one_jump_of_memory_is_no_leak():
    samples = cycles()
    samples[30]['memory_mb'] += 500
    assert judge(samples)['failures'] == []


@pytest.mark.parametrize('share', [2 * MOST_GROWTH, 0.5])
def test_memory_that_grows_is_seen(share):
    samples = cycles()
    for index, sample in enumerate(samples):
        sample['memory_mb'] += 1000 * share * index / len(samples)
    (failure,) = judge(samples)['failures']
    assert 'memory grew by' in failure


@pytest.mark.parametrize('key', COUNTED)
def test_what_is_left_behind_is_seen(key):
    samples = cycles(**{key: 31})
    (failure,) = judge(samples)['failures']
    assert f'31 {key} after the warm-up' in failure


def test_too_short_a_run_is_not_judged():
    with pytest.raises(ValueError, match='too few to judge'):
        judge(cycles(LEAST_WARM_UP + LEAST_JUDGED - 1))


def test_handles_and_processes_are_counted(tmp_path):
    before = held()
    child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    with (tmp_path / 'file').open('w'), child:
        during = held()
        child.communicate(b'\n')
    assert during['handles'] >= before['handles'] + 1
    assert during['processes'] == before['processes'] + 1
    assert held()['processes'] == before['processes']


def test_the_curve_is_drawn(tmp_path):
    samples = cycles()
    draw(samples, judge(samples), tmp_path / 'curve.png', machine='a machine')
    assert cv2.imread(str(tmp_path / 'curve.png')).std() > 10


@pytest.mark.skipif(memory.malloc_trim() is None, reason='this C library cannot be asked')
def test_freed_memory_is_given_back():
    """Large blocks between small ones that stay: free, but in the middle of the heap."""
    large, small = [], []
    for _ in range(3000):
        large.append(torch.ones(15_000))  # 60 kB: below what glibc asks the system for one by one
        small.append(torch.ones(16))
    large.clear()
    before = held()['memory_mb']
    memory.ReturnMemoryHook().after_train_epoch(None)
    assert before - held()['memory_mb'] > 60  # of 180 MB; some of it lies where nothing else was in between
    assert len(small) == 3000


def test_memory_is_given_back_in_trainings_without_epochs(monkeypatch):
    asked = []
    monkeypatch.setattr(memory, 'return_memory', lambda: asked.append(1))
    hook = memory.ReturnMemoryHook(interval=5)
    for number in range(20):
        hook.after_train_iter(SimpleNamespace(iter=number), batch_idx=number)
    assert len(asked) == 4
    with pytest.raises(ValueError, match='interval=0'):
        memory.ReturnMemoryHook(interval=0)


@pytest.mark.slow
def test_two_minutes(tmp_path):
    output = run_tool(
        ROOT / 'tests/reliability/long_run.py', '--minutes', 2, '--scenes', 8, 2, '--out', tmp_path, cwd=tmp_path
    )
    record = json.loads((tmp_path / 'long_run.json').read_text())
    assert record['verdict']['failures'] == []
    assert record['verdict']['processes'] == [0, 0]
    assert output.count('norms 53 -> 0') == record['verdict']['cycles']  # every test was of the fused model
    assert len(list(Path(tmp_path, 'run').glob('epoch_*.pth'))) == 2
    assert (tmp_path / 'long_run.png').is_file()
