"""Rows and tables of a record."""

import re

import pytest

from repnext_mm.lab.bench.tables import inference_tables, settings
from tests.lab.bench.conftest import JOB


def squeezed(text):
    """Without the spaces that align columns."""
    return re.sub(' +', ' ', text)


def test_rows_join_the_repeats(record):
    ((setting, rows),) = settings(record).items()
    assert str(setting) == 'latency, eager, 1x3x224x224, float32, contiguous'
    half = next(row for row in rows if (row.model, row.form) == ('m4', 'half'))
    assert (half.time.median_ms, half.time.n, half.medians_ms) == (41.5, 4, (41, 43))
    assert half.time.p10_ms < 41 < half.time.median_ms < 43 < half.time.p90_ms
    assert half.ratio == pytest.approx((51 / 41 + 61 / 43) / 2)  # within each process, then the median
    assert half.images_per_s == pytest.approx(1000 / 41.5)
    assert next(row for row in rows if row.model == 'm1').ratio is None  # nothing to compare with
    assert next(row for row in rows if row.model == 'resnet50').time.n == 2


def test_the_table_says_what_was_measured_and_what_not(record):
    text = squeezed(inference_tables(record))
    assert 'Command: `python tools/benchmark.py`' in text
    assert '- device: A CPU' in text and 'commit' not in text
    assert '| M4 | half | 41.5 | 40.3 to 44.1 | 4 | 41.0 to 43.0 | 1.33 | 1e-06 | 13.30 | 0 | 82.3 |' in text
    assert '| ResNet-50 | fused | 60.5 | 60.1 to 60.9 | 2 | (one) | | 1e-06 | 13.30 | 0 | |' in text
    assert 'resnet50/fused: out of memory (1 of 2 repeats)' in text
    assert '- compile: no compiler' in text
    assert 'Peak resident memory of the whole process, all variants together: 800 MiB.' in text
    assert 'Reported top-1 of RepViT (distilled)' in text


def test_throughput_counts_images(record):
    for run in record['runs']:
        run['batch'], run['job'] = 8, {**JOB, 'mode': 'throughput', 'shape': [32, 3, 224, 224]}
    text = squeezed(inference_tables(record))
    assert '## throughput, eager, 8x3x224x224, float32, contiguous' in text
    assert '| 41.0 to 43.0 | 192.8 | 1.33 |' in text


def test_gpu_tables_have_events_and_memory(record):
    record['settings']['device'] = 'cuda'
    for run in record['runs']:
        run['variants'][2] |= {'event_times_ms': [30.0, 32.0], 'peak_memory_mib': 77.4}
    text = squeezed(inference_tables(record))
    assert '| 41.0 to 43.0 | 31.0 | 77 | 1.33 |' in text
    assert 'resident' not in text


def test_the_floor_is_that_of_the_same_process(record):
    assert 'floor' not in inference_tables(record)
    for run, rate in zip(record['runs'], (100.0, 50.0), strict=True):  # multiply-accumulates in a ms, of the faster one
        run['stacks'] = [{'stack': 'a', 'macs': 600, 'times_ms': [600 / rate] * 2}, {'macs': 600, 'times_ms': [60, 60]}]
        run['variants'][2]['pointwise_macs'] = 1000
    text = squeezed(inference_tables(record))
    assert '"floor": the 1x1 convolutions alone, at the rate of plain stacks' in text
    assert '| 41.0 to 43.0 | 15.0 | 2.77 | 1.33 |' in text  # between 10 and 20 ms
    assert '| (one) | | | | 1e-06 |' in text
