"""Sheets of results: labels that occur, and what cannot be drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from repnext_mm.apis import load_config
from repnext_mm.demo.panels import Mark, Panel
from repnext_mm.visualize.predictions import draw_predictions, occurring
from tests.tools.running import ROOT


def panel(*labels):
    return Panel(np.zeros((4, 4, 3), np.uint8), tuple(Mark(np.ones((4, 4), bool), label) for label in labels))


def test_legend_has_what_occurs():
    pairs, shown = occurring([(panel(7), panel(7, 3)), (panel(), panel(90))])
    assert shown == [3, 7, 90]
    assert [[mark.label for mark in side.marks] for pair in pairs for side in pair] == [[1], [1, 0], [], [2]]


def test_no_truth_to_show(tmp_path):
    path = ROOT / 'configs/semantic_fpn_repnext_m0_digits.py'
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    options = {
        'data_root': str(tmp_path / 'data'),
        'test_dataloader.dataset.scenes': {'train': 1, 'val': 1},
        'test_dataloader.dataset.pipeline': pipeline,
    }
    init_default_scope('mmseg')
    weights = str(tmp_path / 'weights.pth')
    torch.save({'state_dict': MODELS.build(load_config(path).model).state_dict()}, weights)
    with pytest.raises(ValueError, match='loads no truth, which the sheet shows: put LoadAnnotations into it'):
        draw_predictions(path, weights, tmp_path / 'sheet.png', options=options)
