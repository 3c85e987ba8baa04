"""Handwritten digits on disk: written once, read by MMPretrain's own data set."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS

from repnext_mm.data import ensure_digits
from repnext_mm.data.sources import load_sources

pytest.importorskip('mmpretrain')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'digits'
    assert ensure_digits(folder) is True
    return folder


@pytest.mark.parametrize(('split', 'count'), [('train', 1433), ('val', 364)])
def test_as_a_data_set(root, split, count):
    dataset = DATASETS.build(dict(type='DigitImages', split=split, data_root=str(root)))
    assert type(dataset).__name__ == 'CustomDataset'
    assert dataset.metainfo['classes'][3] == 'digit 3'
    labels = [item['gt_label'] for item in dataset]
    sources = load_sources(split)
    assert len(labels) == len(sources.labels) == count
    assert np.bincount(labels).tolist() == np.bincount(sources.labels).tolist()
    item = dataset[0]
    image = cv2.imread(item['img_path'])
    assert image.shape == (32, 32, 3)
    digit = sources.digits[np.flatnonzero(sources.labels == item['gt_label'])[0]]
    small = cv2.resize(255 - image[..., 0], (8, 8), interpolation=cv2.INTER_AREA) / 255
    assert np.corrcoef(small.ravel(), digit.ravel())[0, 1] > 0.95  # ink is dark on light paper


def test_made_once(root, tmp_path):
    assert ensure_digits(root) is False
    with pytest.raises(FileExistsError, match='size is 32 instead of 16'):
        ensure_digits(root, size=16)
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'file').touch()
    with pytest.raises(FileExistsError, match='does not hold handwritten digits'):
        ensure_digits(tmp_path / 'other')


def test_refuses_what_cannot_be(tmp_path):
    with pytest.raises(ValueError, match='8x8'):
        ensure_digits(tmp_path / 'small', size=4)
    with pytest.raises(ValueError, match="choose 'train' or 'val'"):
        DATASETS.build(dict(type='DigitImages', split='test', data_root=str(tmp_path / 'digits')))
    assert not (tmp_path / 'digits').exists()
