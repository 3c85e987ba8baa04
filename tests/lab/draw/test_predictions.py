"""Sheets of results: what is marked, labels that occur, and what cannot be drawn."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, MODELS, init_default_scope

from repnext_mm.apis import load_config
from repnext_mm.apis.weight_files import load_model
from repnext_mm.lab.draw.panels import Mark, Panel, marked_classes, predicted_pairs
from repnext_mm.lab.draw.predictions import draw_predictions, occurring
from tests.layouts import write_ade20k
from tests.tools.running import ROOT

DETECTION = ROOT / 'configs/mask_rcnn_repnext_m0_digits.py'
SEGMENTATION = ROOT / 'configs/semantic_fpn_repnext_m0_digits.py'
BOXES_ONLY = {
    'model.type': 'FasterRCNN',
    'model.roi_head.mask_head': None,
    'model.roi_head.mask_roi_extractor': None,
    'test_evaluator.metric': 'bbox',
    'val_evaluator.metric': 'bbox',
}


def panel(*labels):
    return Panel(np.zeros((4, 4, 3), np.uint8), tuple(Mark(np.ones((4, 4), bool), label) for label in labels))


def test_legend_has_what_occurs():
    pairs, shown = occurring([(panel(7), panel(7, 3)), (panel(), panel(90))])
    assert shown == [3, 7, 90]
    assert [[mark.label for mark in side.marks] for pair in pairs for side in pair] == [[1], [1, 0], [], [2]]


@pytest.fixture
def made(tmp_path):
    """A config's options for two scenes, and random weights for it whose detections are sure."""

    def make(path, **options):
        options = {
            'data_root': str(tmp_path / 'data'),
            'test_dataloader.dataset.scenes': {'train': 1, 'val': 2},
            **options,
        }
        config = load_config(path, options=dict(options))
        init_default_scope(config.default_scope)
        state = MODELS.build(config.model).state_dict()
        if 'roi_head.bbox_head.fc_cls.weight' in state:  # of every proposal: class 3
            state['roi_head.bbox_head.fc_cls.weight'].zero_()
            state['roi_head.bbox_head.fc_cls.bias'].zero_()[3] = 10.0
        torch.save({'state_dict': state}, tmp_path / 'weights.pth')
        return config, str(tmp_path / 'weights.pth'), options

    return make


def test_no_truth_to_show(made, tmp_path):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    _, weights, options = made(SEGMENTATION, **{'test_dataloader.dataset.pipeline': pipeline})
    with pytest.raises(ValueError, match='loads no truth, which the sheet shows: put LoadAnnotations into it'):
        draw_predictions(SEGMENTATION, weights, tmp_path / 'sheet.png', options=options)


def test_masks_need_true_masks_and_boxes_true_boxes(made, tmp_path):
    steps = load_config(DETECTION).test_dataloader.dataset.pipeline
    for step in steps:
        if step['type'] == 'LoadAnnotations':
            step.update(with_bbox=False, with_mask=False)
    pipeline = {'test_dataloader.dataset.pipeline': [dict(step) for step in steps]}
    for without, option in (({}, 'with_mask'), (BOXES_ONLY, 'with_bbox')):
        _, weights, options = made(DETECTION, **pipeline, **without)
        with pytest.raises(ValueError, match=f'put LoadAnnotations with {option}=True into it'):
            draw_predictions(DETECTION, weights, tmp_path / 'sheet.png', options=options)


def test_a_detector_without_masks(made, tmp_path):
    config, weights, options = made(DETECTION, **BOXES_ONLY)
    model = load_model(config, weights).eval()
    assert not model.with_mask
    pairs = predicted_pairs(model, DATASETS.build(config.test_dataloader.dataset), count=2)
    predicted = [mark for _, found in pairs for mark in found.marks]
    assert {mark.label for mark in predicted} == {3}
    assert all(mark.box is not None and mark.score >= 0.5 and not mark.mask.any() for mark in predicted)
    true = [mark for truth, _ in pairs for mark in truth.marks]
    assert true
    assert all(mark.box is not None and mark.score is None for mark in true)
    sheet = cv2.imread(str(draw_predictions(DETECTION, weights, tmp_path / 'sheet.png', options=options)))
    assert (np.ptp(sheet.astype(int), axis=2) > 60).sum() > 1000  # pictures are grey, boxes are coloured


def test_boxes_of_pictures_whose_truth_has_no_masks(made):
    steps = [dict(step) for step in load_config(DETECTION).test_dataloader.dataset.pipeline]
    for step in steps:
        if step['type'] == 'LoadAnnotations':
            step['with_mask'] = False
    config, weights, _ = made(DETECTION, **BOXES_ONLY, **{'test_dataloader.dataset.pipeline': steps})
    ((truth, _), _) = predicted_pairs(
        load_model(config, weights).eval(), DATASETS.build(config.test_dataloader.dataset), count=2
    )
    for mark in truth.marks:
        left, top, right, bottom = mark.box
        assert 0 <= left < right <= truth.image.shape[1]
        assert 0 <= top < bottom <= truth.image.shape[0]
        assert mark.mask.shape == truth.image.shape[:2]
        assert not mark.mask.any()
    assert truth.marks


@pytest.mark.parametrize(
    ('names', 'ignored', 'marked'),
    [
        (('wall', 'floor', 'sky'), 255, {0, 1, 2}),
        (('background', 'cat', 'dog'), 255, {1, 2}),
        (('cat', 'Background'), 255, {0}),
        (('road', 'void', 'car'), 1, {0, 2}),
    ],
    ids=['ade20k', 'voc', 'capital', 'ignored'],
)
def test_only_background_and_the_ignored_label_are_not_marked(names, ignored, marked):
    assert marked_classes(SimpleNamespace(metainfo={'classes': names}, ignore_index=ignored)) == marked


def test_the_first_class_of_ade20k_is_marked(tmp_path):
    """Its class 0 is wall; 'other' is 255 once loaded."""
    write_ade20k(tmp_path / 'ade/ADEChallengeData2016', train=1, val=1)
    path = ROOT / 'configs/semantic_fpn_repnext_m0_ade20k.py'
    options = {'data_root': str(tmp_path / 'ade/ADEChallengeData2016')}
    config = load_config(path, options=options)
    init_default_scope('mmseg')
    state = MODELS.build(config.model).state_dict()
    state['decode_head.conv_seg.weight'].zero_()
    state['decode_head.conv_seg.bias'].zero_()[0] = 1.0
    torch.save({'state_dict': state}, tmp_path / 'weights.pth')
    config.test_dataloader.dataset.pipeline[1].scale = (96, 96)
    ((truth, found),) = predicted_pairs(
        load_model(config, tmp_path / 'weights.pth').eval(), DATASETS.build(config.test_dataloader.dataset), count=9
    )
    ((mask, label, *_),) = found.marks
    assert label == 0
    assert mask.all()
    file = tmp_path / 'ade/ADEChallengeData2016/annotations/validation/ADE_val_00000001.png'
    values = set(np.unique(cv2.imread(str(file), cv2.IMREAD_UNCHANGED)).tolist())
    assert {mark.label for mark in truth.marks} == {value - 1 for value in values if value}
