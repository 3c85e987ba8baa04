"""CIFAR-100 as the recipes read it: the augmentation weighs red, green and blue as Pillow does."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, init_default_scope
from PIL import Image, ImageEnhance

from tests.configs import CONFIGS

mmpretrain = pytest.importorskip('mmpretrain.datasets')


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Pure red, green and blue, and noise."""
    pixels = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    for label in range(3):
        pixels[label] = 255 * np.eye(3, dtype=np.uint8)[label]
    folder = tmp_path / 'cifar-100-python'
    folder.mkdir()
    content = {'data': pixels.transpose(0, 3, 1, 2).reshape(4, 3072), 'fine_labels': [0, 1, 2, 3]}
    for name in ('train', 'test'):
        (folder / name).write_bytes(pickle.dumps(content))
    monkeypatch.setattr(mmpretrain.CIFAR100, '_check_integrity', lambda self: True)
    init_default_scope('mmpretrain')
    return tmp_path, pixels


@pytest.mark.parametrize('loader', ['train', 'test'])
def test_images_are_bgr_and_reach_the_network_as_rgb(root, loader):
    folder, pixels = root
    config = Config.fromfile(CONFIGS / 'repnext_m0_cifar100.py')
    settings = dict(config[f'{loader}_dataloader'].dataset, data_root=str(folder), pipeline=[dict(type='PackInputs')])
    data = DATASETS.build(settings)
    preprocess = MODELS.build(config.model.data_preprocessor)
    for index in range(4):
        item = data[index]
        assert np.array_equal(item['inputs'].numpy(), pixels[index, ..., ::-1].transpose(2, 0, 1))
        batch = preprocess(dict(inputs=[item['inputs']], data_samples=[item['data_samples']]))['inputs'][0]
        mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
        expected = ((pixels[index] - mean) / std).transpose(2, 0, 1)
        np.testing.assert_allclose(batch.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize('name', ['ColorTransform', 'Contrast'])
@pytest.mark.parametrize('magnitude', [0.9, -0.9])
def test_gray_is_weighed_as_pillow_does(root, name, magnitude):
    """The two steps of RandAugment that need a gray image, at timm's strength: within a level of Pillow's."""
    folder, pixels = root
    config = Config.fromfile(CONFIGS / 'repnext_m0_cifar100.py')
    settings = config.train_dataloader.dataset
    augment = next(step for step in settings.pipeline if step.type == 'RandAugment')
    assert name in {policy['type'] for policy in TRANSFORMS.build(augment).policies}
    step = dict(type=name, magnitude=magnitude, prob=1.0, random_negative_prob=0.0)
    data = DATASETS.build(dict(settings, data_root=str(folder), pipeline=[step]))
    enhance = ImageEnhance.Color if name == 'ColorTransform' else ImageEnhance.Contrast
    for index in range(4):
        expected = np.array(enhance(Image.fromarray(pixels[index])).enhance(1 + magnitude))
        found = data[index]['img'][..., ::-1]
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_the_stock_data_set_is_what_this_is_for(root):
    """In RGB the same step is off by more than anyone would call rounding: if this fails, drop CIFAR100InBGR."""
    folder, pixels = root
    step = dict(type='ColorTransform', magnitude=-0.9, prob=1.0, random_negative_prob=0.0)
    found = DATASETS.build(dict(type='CIFAR100', data_root=str(folder), split='train', download=False, pipeline=[step]))
    expected = np.array(ImageEnhance.Color(Image.fromarray(pixels[0])).enhance(0.1))
    assert np.abs(found[0]['img'].astype(int) - expected).max() > 30
    assert cv2.cvtColor(pixels[:1, 0, 0][None], cv2.COLOR_BGR2GRAY).item() == 29  # of pure red, whose weight is 76
