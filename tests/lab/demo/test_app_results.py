"""Answers of detectors, segmentors and classifiers as rows and areas, and how far two of them differ."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData

from repnext_mm.lab.demo.app_results import DIFFERENCES, FINDINGS, MAX_AREAS, MAX_SIDE, for_screen


def instances(scores, labels, *, shift=0.0, masks=True):
    count = len(scores)
    boxes = torch.tensor([[1.2, 2.0, 5.6, 6.0]]).repeat(count, 1) + shift
    found = InstanceData(bboxes=boxes, scores=torch.tensor(scores), labels=torch.tensor(labels, dtype=torch.long))
    if masks:
        found.masks = torch.arange(count * 64).reshape(count, 8, 8) % 3 == 0
    return SimpleNamespace(pred_instances=found)


@pytest.mark.parametrize('masks', [True, False], ids=['masks', 'boxes'])
def test_detections(masks):
    sample = instances([0.2, 0.7, 0.9], [0, 2, 1], masks=masks)
    found = FINDINGS['mmdet'](sample, ('a', 'b'), ('#000000', '#00ff00'), 0.3)
    assert found.rows == [('1', 'b', '0.900', '1, 2, 6, 6'), ('2', 'class 2', '0.700', '1, 2, 6, 6')]
    assert [name for _, name in found.areas] == ['1: b 0.90', '2: class 2 0.70']
    assert found.colours == {'1: b 0.90': '#00ff00'}
    for area, index in zip((area for area, _ in found.areas), (2, 1), strict=True):
        if masks:
            assert area.tolist() == sample.pred_instances.masks[index].tolist()
        else:
            assert area == (1, 2, 6, 6)


def test_detections_without_end_and_none():
    sample = instances([0.5] * (MAX_AREAS + 7), [0] * (MAX_AREAS + 7))
    found = FINDINGS['mmdet'](sample, ('a',), ('#000000',), 0.3)
    assert len(found.rows) == len(found.areas) == len({name for _, name in found.areas}) == MAX_AREAS
    assert found.left_out == 7
    assert FINDINGS['mmdet'](sample, ('a',), ('#000000',), 0.6).rows == []


def regions(labels, logits=None):
    labels = torch.tensor(labels)[None]
    logits = torch.ones(3, *labels.shape[1:]) if logits is None else logits
    return SimpleNamespace(pred_sem_seg=PixelData(data=labels), seg_logits=PixelData(data=logits))


def test_regions():
    found = FINDINGS['mmseg'](regions([[0, 0, 2, 2], [0, 0, 0, 1]]), ('background', 'a', 'b'), ('#1', '#2', '#3'), 0.3)
    assert found.rows == [('background', '62.50%'), ('b', '25.00%'), ('a', '12.50%')]
    assert found.colours == {'b 25.0%': '#3', 'a 12.5%': '#2'}
    assert [(area.tolist(), name) for area, name in found.areas] == [
        ([[False, False, True, True], [False, False, False, False]], 'b 25.0%'),
        ([[False, False, False, False], [False, False, False, True]], 'a 12.5%'),
    ]
    first = FINDINGS['mmseg'](regions([[0, 0]]), ('wall', 'floor'), ('#1', '#2'), 0.3)
    assert [name for _, name in first.areas] == ['wall 100.0%']  # the first class need not be the background


def test_probabilities():
    sample = SimpleNamespace(pred_score=torch.tensor([0.1, 0.5, 0.05, 0.2, 0.03, 0.12]))
    found = FINDINGS['mmpretrain'](sample, tuple('abcdef'), (), 0.3)
    assert found.rows == [('b', '0.5000'), ('d', '0.2000'), ('f', '0.1200'), ('a', '0.1000'), ('c', '0.0500')]
    assert not found.areas


def test_differences():
    compare = DIFFERENCES['mmdet']
    first = instances([0.5, 0.5, 0.9], [1, 0, 1])
    assert compare(first, instances([0.9, 0.5, 0.5], [1, 1, 0], masks=True))['scores'] == '0.0e+00'  # another order
    found = compare(first, instances([0.5, 0.25, 0.9], [1, 0, 1], shift=0.5))
    assert found == {'scores': '2.5e-01', 'boxes, pixels': '5.0e-01', 'pixels of masks': '0 of 192'}
    assert compare(first, instances([0.5], [1])) == {'number of detections, or their classes': '3 and 1 detections'}
    assert compare(instances([], []), instances([], [])) == {'detections': 'none in either form'}
    logits = torch.ones(3, 1, 2)
    logits[0, 0, 0] = 2.0
    found = DIFFERENCES['mmseg'](regions([[0, 1]], logits), regions([[0, 2]]))
    assert found == {'logits, relative': '5.0e-01', 'pixels of another class': '1 of 2'}
    scores = [SimpleNamespace(pred_score=torch.tensor(values)) for values in ([0.5, 0.5], [0.25, 0.75])]
    assert DIFFERENCES['mmpretrain'](*scores) == {'probabilities': '2.5e-01'}


def test_large_pictures_are_shown_smaller():
    image = np.full((30, 2 * MAX_SIDE + 1, 3), 7, np.uint8)
    mask = np.zeros(image.shape[:2], bool)
    mask[:, -3:] = True
    small, ((shown, name), (box, _)) = for_screen(image, [(mask, 'a'), ((0, 3, 2401, 30), 'b')])
    assert small.shape == (10, 801, 3)
    assert (small == 7).all()
    assert name == 'a'
    assert shown.shape == (10, 801)
    assert [shown[0, -2], shown[0, -1]] == pytest.approx([0, 0.6])
    assert box == (0, 1, 800, 10)
    same, _ = for_screen(image[:, :MAX_SIDE], [])
    assert same.shape == (30, MAX_SIDE, 3)
