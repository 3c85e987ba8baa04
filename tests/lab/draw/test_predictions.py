"""Sheets of results: what is marked, labels that occur, and what cannot be drawn."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, MODELS, init_default_scope

from repnext_mm.apis import load_config
from repnext_mm.apis.build import build_model
from repnext_mm.lab.draw.predictions import draw_predictions, draw_sheet, drawn_pair, marked_classes
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


def colored(image):
    """How many pixels are marked: the image under the marks is gray."""
    return (np.ptp(image.astype(int), axis=2) > 60).sum()


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
    with pytest.raises(
        ValueError, match='does not load the ground truth that the sheet shows: add LoadAnnotations to it'
    ):
        draw_predictions(SEGMENTATION, weights, tmp_path / 'sheet.png', options=options)


def test_masks_need_true_masks_and_boxes_true_boxes(made, tmp_path):
    steps = load_config(DETECTION).test_dataloader.dataset.pipeline
    for step in steps:
        if step['type'] == 'LoadAnnotations':
            step.update(with_bbox=False, with_mask=False)
    pipeline = {'test_dataloader.dataset.pipeline': [dict(step) for step in steps]}
    for without, option in (({}, 'with_mask'), (BOXES_ONLY, 'with_bbox')):
        _, weights, options = made(DETECTION, **pipeline, **without)
        with pytest.raises(ValueError, match=f'add LoadAnnotations with {option}=True to it'):
            draw_predictions(DETECTION, weights, tmp_path / 'sheet.png', options=options)


def pairs_of(config, weights):
    model = build_model(config, weights).eval()
    dataset = DATASETS.build(config.test_dataloader.dataset)
    return [drawn_pair(model, dataset, index) for index in range(2)]


@pytest.mark.parametrize(
    'boxes_only', [pytest.param(False, id='masks'), pytest.param(True, id='boxes', marks=pytest.mark.slow)]
)
def test_a_detector(boxes_only, made, tmp_path):
    config, weights, options = made(DETECTION, **(BOXES_ONLY if boxes_only else {}))
    for pair in pairs_of(config, weights):
        assert pair.truth.shape == pair.prediction.shape == (256, 256, 3)
        assert colored(pair.truth) > 100
        assert colored(pair.prediction) > 100
    sheet = cv2.imread(str(draw_predictions(DETECTION, weights, tmp_path / 'new/sheet.png', options=options)))
    assert sheet.shape[1] == 1320
    assert colored(sheet) > 1000


def test_what_is_not_sure_is_not_drawn(made):
    config, weights, _ = made(DETECTION)
    state = torch.load(weights, weights_only=True)
    state['state_dict']['roi_head.bbox_head.fc_cls.bias'][:] = 0.0  # each class as sure as the other
    torch.save(state, weights)
    for pair in pairs_of(config, weights):
        assert colored(pair.prediction) == 0 < colored(pair.truth)


def test_boxes_of_images_whose_truth_has_no_masks(made):
    steps = [dict(step) for step in load_config(DETECTION).test_dataloader.dataset.pipeline]
    for step in steps:
        if step['type'] == 'LoadAnnotations':
            step['with_mask'] = False
    config, weights, _ = made(DETECTION, **BOXES_ONLY, **{'test_dataloader.dataset.pipeline': steps})
    assert all(colored(pair.truth) > 100 for pair in pairs_of(config, weights))


@pytest.mark.parametrize('count', [1, 3])
def test_a_sheet_shows_every_pair(count, made, tmp_path):
    config, weights, _ = made(SEGMENTATION, **{'test_dataloader.dataset.scenes': {'train': 1, 'val': 3}})
    state = torch.load(weights, weights_only=True)
    state['state_dict']['decode_head.conv_seg.weight'].zero_()
    state['state_dict']['decode_head.conv_seg.bias'].zero_()[4] = 1.0  # all pixels: class 4
    torch.save(state, weights)
    model, dataset = build_model(config, weights).eval(), DATASETS.build(config.test_dataloader.dataset)
    path = draw_sheet(model, dataset, tmp_path / 'sheet.png', count=count, title='t')
    color = np.array(dataset.metainfo['palette'][4])[::-1]
    direction = color - color.mean()
    sheet = cv2.imread(str(path)).astype(int)
    tint = (sheet - sheet.mean(axis=2, keepdims=True)) @ direction / (direction @ direction)
    assert (tint > 0.4).sum() > 0.8 * count * 300 * 300
    assert 4 in drawn_pair(model, dataset, 0).regions


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
    dataset = DATASETS.build(config.test_dataloader.dataset)
    pair = drawn_pair(build_model(config, tmp_path / 'weights.pth').eval(), dataset, 0)
    gray = cv2.imread(str(next((tmp_path / 'ade/ADEChallengeData2016/images/validation').iterdir())), 0)
    wall = np.array(dataset.metainfo['palette'][0])
    expected = 0.45 * gray[..., None] + 0.55 * wall
    for rows in np.split(np.stack([pair.prediction, expected]), 4, axis=1):  # all of it
        for drawn, marked in np.split(rows, 4, axis=2):
            # matplotlib before 3.11 moves some columns by a pixel
            assert abs(drawn.mean() - marked.mean()) < 2
            assert drawn.std() == pytest.approx(marked.std(), rel=0.1)  # 2.2 times that where it is not marked
    file = tmp_path / 'ade/ADEChallengeData2016/annotations/validation/ADE_val_00000001.png'
    values = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    assert pair.regions == {0} | {value - 1 for value in np.unique(values).tolist() if value}
    unlabeled = values == 0
    assert np.abs(pair.truth[unlabeled] - gray[unlabeled][:, None].astype(int)).max(initial=0) < 2
