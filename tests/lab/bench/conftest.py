"""A record of two repeats, as tools/benchmark.py writes it."""

import pytest

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
