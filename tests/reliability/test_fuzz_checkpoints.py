"""Weight files from anywhere: a mapping or one sentence, never code that runs, a hang, or a full memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.tools.running import ROOT


def fuzzed(count, seed, folder):
    """The report of ``count`` mutations, judged in a process that may crash."""
    done = subprocess.run(
        [
            sys.executable,
            '-W',
            'ignore',
            '-m',
            'tests.reliability.fuzz_checkpoints',
            f'--count={count}',
            f'--seed={seed}',
        ],
        cwd=folder,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    last = (folder / 'last').read_text() if (folder / 'last').exists() else 'the start'
    assert done.returncode == 0, f'seed {seed}, at {last}: {done.returncode} {done.stderr[-3000:]}'
    return json.loads((folder / 'report.json').read_text())


def test_some_mutations(tmp_path):
    report = fuzzed(150, 0, tmp_path)
    assert report['defects'] == []
    assert report['outcomes']['refused'] > 80
    assert report['outcomes']['read'] > 5  # some change nothing that counts: not everything is refused unread


@pytest.mark.slow
@pytest.mark.parametrize('seed', [1, 2, 3, 4])
def test_ten_thousand_mutations(seed, tmp_path):
    report = fuzzed(2500, seed, tmp_path)
    assert report['defects'] == []
    assert sum(report['outcomes'].values()) == 2500
    assert report['slowest_s'] < 5
    assert report['peak_mb'] < 1500
