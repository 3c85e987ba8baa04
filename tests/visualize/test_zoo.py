"""Accuracy against latency: what is reported, and what the records hold."""

from __future__ import annotations

import cv2
import pytest

from repnext_mm.benchmark.plot import METRICS
from repnext_mm.benchmark.record import read_record
from repnext_mm.visualize.zoo import measured_panels, plot_zoo, reported_panel
from tests.tools.running import ROOT

TOP1, BOX_AP, MIOU = METRICS
RECORD = ROOT / 'docs/benchmarks/pareto-cpu-epyc.json'


def test_reported():
    panel = reported_panel(TOP1)
    ours = panel.lines['RepNeXt, as reported']
    assert [point.label for point in ours] == ['M0', 'M1', 'M2', 'M3', 'M4', 'M5']
    assert (ours[0].latency_ms, ours[0].accuracy) == (0.59, 74.2)
    assert len(panel.lines) == 6
    boxes = reported_panel(BOX_AP)
    assert '512x512, backbone' in boxes.title
    assert [point.label for point in boxes.lines['RepViT']] == ['M1.1', 'M1.5', 'M2.3']


def test_measured():
    (panel,) = measured_panels(read_record(RECORD), TOP1)
    assert '1x3x224x224, float32, contiguous' in panel.title
    assert len(panel.lines['RepNeXt, fastest fused form']) == 6
    assert all(point.latency_ms > 0 for points in panel.lines.values() for point in points)


def test_picture(tmp_path):
    path = plot_zoo([read_record(RECORD)], tmp_path / 'zoo.png', metrics=[TOP1, MIOU])
    assert cv2.imread(str(path)).std() > 5
    with pytest.raises(ValueError, match="metric 'top5' is unknown: choose from ImageNet top-1"):
        plot_zoo([], tmp_path / 'zoo.png', metrics=['top5'])
