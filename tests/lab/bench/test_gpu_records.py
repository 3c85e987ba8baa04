"""The plan for a GPU: commands that the tool takes, in the time there is, each into a record of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from repnext_mm.cli import benchmark
from repnext_mm.errors import UserError
from repnext_mm.lab.bench.gpu_records import LIMIT_S, Row, gpu_rows, run_rows
from tests.tools.running import ROOT

ROWS = [Row('one', ('--a',), 10), Row('two', ('--b',), 500), Row('three', ('--c',), 20)]


@pytest.mark.parametrize('tiny', [False, True], ids=['full', 'tiny'])
def test_every_row_is_a_command_on_files_that_exist(tiny):
    parser = argparse.ArgumentParser()
    benchmark.add_options(parser)
    rows = gpu_rows(ROOT / 'configs', tiny=tiny)
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        given = parser.parse_args(list(row.arguments))
        configs = [*given.config, *([given.train] if isinstance(given.train, str) else [])]
        assert all(Path(config).is_file() for config in configs)
        assert given.repeats == 1
    assert sum(row.estimate_s for row in rows) <= LIMIT_S + 60  # the last may not come to its turn


def test_rows_run_in_turn_while_there_is_time(tmp_path):
    calls, now = [], [0.0]

    def run(arguments):
        calls.append(arguments)
        now[0] += 100
        return 0

    found = run_rows(ROWS, tmp_path, run, device='cuda', clock=lambda: now[0], limit_s=590)
    assert found == {'one': 'measured', 'two': 'no time left', 'three': 'measured'}
    assert calls[0] == ['--a', '--device', 'cuda', '--output', str(tmp_path / 'one')]
    (tmp_path / 'one.json').touch()
    found = run_rows(ROWS, tmp_path, run, device='cuda', clock=lambda: now[0])
    assert found == {'one': 'kept', 'two': 'measured', 'three': 'measured'}


def test_a_row_that_fails_does_not_stop_the_others(tmp_path):
    def run(arguments):
        if arguments[0] == '--a':
            raise ValueError('broken')
        return int(arguments[0] == '--b')

    found = run_rows(ROWS, tmp_path, run, device='cpu')
    assert found == {'one': 'failed: ValueError: broken', 'two': 'failed', 'three': 'measured'}


def test_no_time_at_all(tmp_path):
    with pytest.raises(UserError, match='limit_s=0: give the seconds'):
        run_rows(ROWS, tmp_path, lambda _: 0, device='cpu', limit_s=0)
