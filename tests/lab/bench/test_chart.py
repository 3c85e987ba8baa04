"""Accuracy against latency: what is reported, and what the records hold."""

from __future__ import annotations

from itertools import combinations

import cv2
import pytest

from repnext_mm.lab.bench.chart import (
    FASTEST,
    FLOOR,
    METRICS,
    measured_panel,
    measured_panels,
    plot_lengths,
    plot_record,
    plot_zoo,
    reported_panel,
    series,
)
from repnext_mm.lab.bench.published import COMPACT
from repnext_mm.lab.bench.record import read_record
from repnext_mm.lab.bench.tables import settings
from repnext_mm.lab.draw.logs import read_run
from tests.lab.bench.conftest import JOB, row
from tests.tools.running import ROOT

TOP1, BOX_AP, MIOU = METRICS
RECORD = ROOT / 'docs/benchmarks/pareto-cpu-epyc.json'


def test_reported():
    panel = reported_panel(TOP1)
    ours = panel.lines['RepNeXt, as reported']
    assert [point.label for point in ours] == ['M0', 'M1', 'M2', 'M3', 'M4', 'M5']
    assert (ours[0].latency_ms, ours[0].accuracy) == (0.59, 74.2)
    assert set(panel.lines) == {
        'RepNeXt, as reported',
        "RepNeXt E, as reported (StarNet's recipe)",
        'RepNeXt without distillation, as reported',
        'MobileViG',
        'FastViT',
        'SwiftFormer',
        'EfficientFormerV2',
        'EfficientFormer',
        'RepViT',
        'MobileOne',
        'StarNet',
    }
    plain = panel.lines['RepNeXt without distillation, as reported']
    assert plain[:2] == [('M0', 0.59, 72.6), ('M1', 0.87, 77.5)]
    assert [point.latency_ms for point in panel.lines['EfficientFormerV2']] == [0.91, 1.06, 1.63, 2.75]
    assert [point.accuracy for point in panel.lines['SwiftFormer']] == [75.7, 78.5, 80.9, 83.0]
    boxes = reported_panel(BOX_AP)
    assert '512x512, backbone' in boxes.title
    assert [point.label for point in boxes.lines['RepViT']] == ['M1.1', 'M1.5', 'M2.3']


def test_lengths(tmp_path):
    """The lengths of the table, whose 300 epochs are the best of the logs that are here."""
    assert cv2.imread(str(plot_lengths(tmp_path / 'lengths.png'))).std() > 5
    logs = {'CIFAR-100': 'cifar100', 'ImageNet-1K': 'imagenet'}
    for data, models in COMPACT.items():
        for model in models:
            assert list(model.top1) == [100, 200, 300, 400]
            name = model.name.lower().replace('-', '_').replace('.', '_')
            run = read_run(ROOT / f'docs/reported/{logs[data]}_{name}.csv')
            assert round(max(run.validation['accuracy/top1'].values()), 2) == model.top1[300]
            assert len(run.training['loss']) == 300


def test_measured():
    (panel,) = measured_panels(read_record(RECORD), TOP1)
    assert '1x3x224x224, float32, contiguous' in panel.title
    assert len(panel.lines['RepNeXt, fastest fused form']) == 6
    assert all(point.latency_ms > 0 for points in panel.lines.values() for point in points)


def test_zoo(tmp_path):
    path = plot_zoo([read_record(RECORD)], tmp_path / 'zoo.png', metrics=[TOP1, MIOU])
    assert cv2.imread(str(path)).std() > 5
    with pytest.raises(ValueError, match="metric 'top5' is unknown: choose from ImageNet top-1"):
        plot_zoo([], tmp_path / 'zoo.png', metrics=['top5'])


def test_no_name_covers_another(monkeypatch):
    figures = []
    monkeypatch.setattr('repnext_mm.lab.bench.chart.save_png', lambda figure, path: figures.append(figure))
    plot_zoo([read_record(RECORD)], 'zoo.png', metrics=list(METRICS))
    axes = [axis for axis in figures[0].axes if axis.get_visible()]
    assert [len(axis.texts) for axis in axes] == [38, 21, 6, 6, 6, 6]
    for axis in axes:
        boxes = [text.get_window_extent() for text in axis.texts]
        assert not [
            (one.get_text(), other.get_text())
            for (one, box), (other, below) in combinations(zip(axis.texts, boxes, strict=True), 2)
            if box.overlaps(below)
        ]


def test_a_line_of_the_chart_is_the_fastest_form(record):
    (rows,) = settings(record).values()
    lines = series(rows)
    assert [(row.model, row.form) for row in lines[FASTEST]] == [('m1', 'half'), ('m4', 'half')]
    assert [row.model for row in lines['RepViT']] == ['repvit_m1_5']
    assert 'RepNeXt, train form' in lines


def test_an_image_per_runtime(record, tmp_path):
    record['runs'] += [{**run, 'job': {**JOB, 'runtime': 'openvino'}} for run in record['runs']]
    files = plot_record(record, tmp_path / 'cpu')
    assert [file.name for file in files] == ['cpu.eager.png', 'cpu.openvino.png']
    image = cv2.imread(str(files[0]))
    assert image.shape[0] > 300 < image.shape[1]
    assert image.std() > 5  # not blank
    record['runs'][-1] = {**record['runs'][-1], 'job': {**JOB, 'runtime': 'openvino', 'dtype': 'int8'}}
    names = [file.name for file in plot_record(record, tmp_path / 'cpu')]
    assert names == ['cpu.eager.png', 'cpu.openvino.float32.png', 'cpu.openvino.int8.png']


def test_the_floor_is_a_line(record):
    for run in record['runs']:
        run['stacks'] = [{'macs': 600, 'times_ms': [60.0]}]
        for variant in run['variants']:
            variant['pointwise_macs'] = 200
    ((setting, rows),) = settings(record).items()
    lines = measured_panel(setting, rows, TOP1).lines
    assert [point.latency_ms for point in lines[FLOOR]] == [20.0, 20.0]
    assert [point.accuracy for point in lines[FLOOR]] == [point.accuracy for point in lines[FASTEST]]


def test_nothing_reported_nothing_drawn(record, tmp_path):
    for run in record['runs']:
        run['variants'] = [row('resnet50', 'fused', 1.0)]
    assert plot_record(record, tmp_path / 'cpu') == []
