"""Rows, table and plot of a record."""

import pytest
from matplotlib.image import imread

from repnext_mm.lab.bench.plot import FASTEST, plot, series
from repnext_mm.lab.bench.report import markdown, settings

JOB = dict(mode='latency', runtime='eager', shape=[1, 3, 224, 224], dtype='float32', memory_format='contiguous')


def row(model, form, *times_ms, **more):
    return dict(
        model=model,
        form=form,
        status='measured',
        error=1e-6,
        parameters=13_300_000,
        norms=0,
        times_ms=list(times_ms),
        **more,
    )


@pytest.fixture
def record():
    variants = [
        [
            row('m4', 'train', 80, 90),
            row('m4', 'keep_norms', 50, 52),
            row('m4', 'half', 40, 42),
            row('m1', 'half', 20, 22),
            row('repvit_m1_5', 'fused', 35, 37),
            row('resnet50', 'fused', 60, 61),
        ],
        [
            row('m4', 'train', 80, 90),
            row('m4', 'keep_norms', 60, 62),
            row('m4', 'half', 41, 45),
            row('m1', 'half', 21, 23),
            row('repvit_m1_5', 'fused', 36, 38),
            dict(model='resnet50', form='fused', status='failed', reason='out of memory'),
        ],
    ]
    runs = [
        dict(job=JOB, repeat=repeat, status='measured', batch=1, process_peak_rss_mib=800.0, variants=rows)
        for repeat, rows in enumerate(variants)
    ]
    return {
        'format': 1,
        'command': 'python tools/benchmark.py',
        'skipped': ['compile: no compiler'],
        'runs': runs,
        'environment': {'device': 'A CPU', 'threads': 2, 'commit': None, 'libraries': {'timm': '1'}},
        'settings': dict(device='cpu', title='Inference', repeats=2, rounds=2, warmup_s=2.0, warmup_rounds=10),
    }


def test_rows_join_the_repeats(record):
    ((setting, rows),) = settings(record).items()
    assert str(setting) == 'latency, eager, 1x3x224x224, float32, contiguous'
    half = next(row for row in rows if (row.model, row.form) == ('m4', 'half'))
    assert (half.median_ms, half.n, half.medians_ms) == (41.5, 4, (41, 43))
    assert half.p10_ms < 41 < half.median_ms < 43 < half.p90_ms
    assert half.ratio == pytest.approx((51 / 41 + 61 / 43) / 2)  # within each process, then the median
    assert half.images_per_s == pytest.approx(1000 / 41.5)
    assert next(row for row in rows if row.model == 'm1').ratio is None  # nothing to compare with
    assert next(row for row in rows if row.model == 'resnet50').n == 2


def test_the_table_says_what_was_measured_and_what_not(record):
    text = markdown(record)
    assert 'Command: `python tools/benchmark.py`' in text
    assert '- device: A CPU' in text and 'commit' not in text
    assert '| M4 | half | 41.5 | 40.3 to 44.1 | 4 | 41.0 to 43.0 | 1.33 | 1e-06 | 13.30 | 0 | 82.3 |' in text
    assert '| ResNet-50 | fused | 60.5 | 60.1 to 60.9 | 2 | (one) |  | 1e-06 | 13.30 | 0 |  |' in text
    assert 'resnet50/fused: out of memory (1 of 2 repeats)' in text
    assert '- compile: no compiler' in text
    assert 'Peak resident memory of the whole process, all variants together: 800 MiB.' in text
    assert 'Reported top-1 of RepViT (distilled)' in text


def test_throughput_counts_images(record):
    for run in record['runs']:
        run['batch'], run['job'] = 8, {**JOB, 'mode': 'throughput', 'shape': [32, 3, 224, 224]}
    text = markdown(record)
    assert '## throughput, eager, 8x3x224x224, float32, contiguous' in text
    assert '| 41.0 to 43.0 | 192.8 | 1.33 |' in text


def test_gpu_tables_have_events_and_memory(record):
    record['settings']['device'] = 'cuda'
    for run in record['runs']:
        run['variants'][2] |= {'event_times_ms': [30.0, 32.0], 'peak_memory_mib': 77.4}
    text = markdown(record)
    assert '| 41.0 to 43.0 | 31.0 | 77 | 1.33 |' in text
    assert 'resident' not in text


def test_a_line_of_the_plot_is_the_fastest_form(record):
    (rows,) = settings(record).values()
    lines = series(rows)
    assert [(row.model, row.form) for row in lines[FASTEST]] == [('m1', 'half'), ('m4', 'half')]
    assert [row.model for row in lines['RepViT']] == ['repvit_m1_5']
    assert 'RepNeXt, train form' in lines


def test_a_picture_per_runtime(record, tmp_path):
    record['runs'] += [{**run, 'job': {**JOB, 'runtime': 'openvino'}} for run in record['runs']]
    files = plot(record, tmp_path / 'cpu')
    assert [file.name for file in files] == ['cpu.eager.png', 'cpu.openvino.png']
    picture = imread(files[0])
    assert picture.shape[0] > 300 < picture.shape[1]
    assert picture.std() > 0.02  # not blank


def test_nothing_reported_nothing_drawn(record, tmp_path):
    for run in record['runs']:
        run['variants'] = [row('resnet50', 'fused', 1.0)]
    assert plot(record, tmp_path / 'cpu') == []
