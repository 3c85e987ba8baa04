"""Interleaved timing: order, warm-up, quantiles, errors."""

import time

import pytest
import torch

from repnext_mm.timing import event_times, measure_latency, wall_times, warm_up
from tests.conftest import needs_gpu


def test_calls_alternate_and_warm_up_is_not_counted():
    seen = []
    result = measure_latency(
        {'a': lambda: seen.append('a'), 'b': lambda: seen.append('b')}, rounds=4, warmup_rounds=2, warmup_s=0
    )
    assert ''.join(seen) == 'ab' * 6
    assert result['a'].n == result['b'].n == 4


def test_quantiles_are_milliseconds_in_order():
    result = measure_latency({'slow': lambda: time.sleep(0.004), 'fast': lambda: None}, rounds=5, warmup_s=0)
    slow, fast = result['slow'], result['fast']
    assert 4 <= slow.p10_ms <= slow.median_ms <= slow.p90_ms < 400
    assert fast.median_ms < slow.median_ms


def test_warm_up_lasts_its_time_too():
    calls = []
    measure_latency({'a': lambda: calls.append(time.sleep(0.002))}, rounds=1, warmup_rounds=0, warmup_s=0.02)
    assert len(calls) > 2


def test_gradients_are_off():
    weight = torch.ones(1, requires_grad=True)
    outputs = []
    measure_latency({'a': lambda: outputs.append(weight * 2)}, rounds=1, warmup_rounds=0, warmup_s=0)
    assert not outputs[0].requires_grad


@pytest.mark.parametrize(
    ('calls', 'options', 'message'),
    [({}, {}, 'nothing to time'), ({'a': int}, dict(rounds=0), 'rounds=0.*at least one round')],
    ids=['empty', 'rounds'],
)
def test_what_cannot_be_timed_is_refused(calls, options, message):
    with pytest.raises(ValueError, match=message):
        measure_latency(calls, **options)


def test_rounds_are_told_between_measurements():
    seen = []
    times = wall_times(
        {'a': lambda: seen.append('a'), 'b': lambda: seen.append('b')}, rounds=2, after_round=lambda: seen.append('.')
    )
    assert ''.join(seen) == 'ab.ab.'
    assert [len(values) for values in times.values()] == [2, 2]


def test_a_warm_up_tells_its_rounds():
    assert warm_up({'a': int}, rounds=3, seconds=0) == 3
    with pytest.raises(ValueError, match='a warm-up of -1 rounds'):
        warm_up({'a': int}, rounds=-1, seconds=0)


@needs_gpu
def test_events_measure_the_gpu():
    x = torch.randn(1024, 1024, device='cuda')
    times = event_times({'small': lambda: x + 1, 'large': lambda: x @ x @ x @ x}, rounds=5)
    assert [len(values) for values in times.values()] == [5, 5]
    assert all(value > 0 for values in times.values() for value in values)
