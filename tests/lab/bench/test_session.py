"""A benchmark's record: opened before the work, never written over, and resumed on the same machine only."""

from __future__ import annotations

import pytest

from repnext_mm.errors import FileInTheWayError, UserError
from repnext_mm.lab.bench.networks import variants
from repnext_mm.lab.bench.record import read_record
from repnext_mm.lab.bench.session import FIRST_BATCH, SEARCH, measure_repeatedly, plan_inference, training_calls

HOW = dict(device='cpu', threads=1, tf32=False, rounds=2, warmup_rounds=0, warmup_s=0.0, repeats=2, command='as called')


def planned(path, **changed):
    options = dict(runtimes=['eager'], shapes=[(1, 3, 64, 64)], dtypes=['float32'], memory_formats=['contiguous'])
    options |= dict(throughput=None, resume=False, **HOW) | changed
    return plan_inference(variants(['m0'], ['default'], []), path, **options)


def test_the_record_is_there_before_the_work(tmp_path):
    found = planned(tmp_path / 'a.json', runtimes=['eager', 'cudagraph'])
    assert found.steps == 2 * sum(job.steps for job in found.jobs)
    record = read_record(tmp_path / 'a.json')
    assert record['command'] == 'as called'
    assert record['settings']['rounds'] == 2
    assert [line.split()[0] for line in record['skipped']] == ['cudagraph']
    with pytest.raises(FileInTheWayError, match='go on with it by --resume'):
        planned(tmp_path / 'a.json')
    assert planned(tmp_path / 'a.json', resume=True).record['environment'] == record['environment']


def test_a_search_for_the_largest_batch_has_a_start(tmp_path):
    job = planned(tmp_path / 'a.json', throughput=SEARCH).jobs[-1]
    assert (job.mode, job.shape[0], job.search_batch) == ('throughput', FIRST_BATCH['cpu'], True)
    job = planned(tmp_path / 'b.json', throughput=7).jobs[-1]
    assert (job.mode, job.shape[0], job.search_batch) == ('throughput', 7, False)


def test_every_repeat_starts_from_the_beginning_and_no_record_is_written_over(tmp_path):
    called = []

    def broken(**how):
        called.append(how)
        raise ValueError('seen')

    how = dict(kind='training', progress=lambda steps: called.append(steps), **HOW)
    with pytest.raises(ValueError, match='seen'):
        measure_repeatedly([broken, broken], tmp_path / 'a.json', **how)
    assert called[0] == 2 * 2 * 2  # rounds, repeats, calls
    assert called[1] == dict(rounds=2, warmup_rounds=0, warmup_s=0.0, device='cpu', progress=None)
    (tmp_path / 'a.json').touch()
    with pytest.raises(FileInTheWayError, match='name another --output'):
        measure_repeatedly([broken], tmp_path / 'a.json', **how)


def test_networks_train_in_eager_or_compile():
    options = dict(shapes=[(2, 3, 64, 64)], dtypes=['float32'], memory_formats=['contiguous', 'channels_last'])
    assert len(training_calls(['m0', 'm1'], runtimes=['eager', 'compile'], **options)) == 8
    with pytest.raises(UserError, match='--train with --runtime openvino: choose of eager, compile, cudagraph'):
        training_calls(['m0'], runtimes=['eager', 'openvino'], **options)
