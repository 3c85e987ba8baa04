"""Models and images to look at: from a config, or a bare backbone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from repnext_mm.apis import load_config
from repnext_mm.apis.build import build_model
from repnext_mm.lab.draw.subject import load_subject, see, untrained
from tests.tools.running import ROOT

CONFIG = ROOT / 'configs/repnext_m0_digits_cls.py'


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'red.png'
    image = np.zeros((40, 30, 3), np.uint8)
    image[..., 2] = 200  # BGR
    cv2.imwrite(str(path), image)
    return path


@pytest.fixture
def weights(tmp_path):
    config = load_config(CONFIG)
    init_default_scope('mmpretrain')
    torch.manual_seed(1)  # other weights than untrained ones
    model = MODELS.build(config.model)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'weights.pth')
    return tmp_path / 'weights.pth'


def test_bare_backbone(image):
    subject, again = load_subject(), load_subject(arch='m0')
    assert subject.name == 'RepNeXt-M0, random weights'
    assert subject.backbone is subject.model
    assert all(torch.equal(a, b) for a, b in zip(subject.model.parameters(), again.model.parameters(), strict=True))
    seen = see(subject, image, size=64)
    assert seen.inputs.shape == (1, 3, 64, 64)
    assert seen.image[0, 0].tolist() == [200, 0, 0]
    assert seen.inputs[0, :, 0, 0].tolist() == pytest.approx([1.3070, -2.0357, -1.8044], abs=1e-4)
    with pytest.raises(ValueError, match='there is nothing trained to compare with'):
        untrained(subject)


def test_as_the_config_sees_it(image, weights):
    subject = load_subject(CONFIG, weights)
    assert subject.name == 'repnext_m0_digits_cls'
    assert not subject.model.training
    seen = see(subject, image)
    assert seen.inputs.shape == (1, 3, 40, 30)
    assert seen.image.shape == (40, 30, 3)
    assert seen.image[0, 0].tolist() == [200, 0, 0]
    preprocessor = subject.model.data_preprocessor
    expected = (torch.tensor([200.0, 0, 0]) - preprocessor.mean.flatten()) / preprocessor.std.flatten()
    assert torch.allclose(seen.inputs[0, :, 0, 0], expected)
    loaded = build_model(load_config(CONFIG), weights).backbone.stem.stem[0].conv.weight
    assert torch.equal(subject.backbone.stem.stem[0].conv.weight, loaded)
    assert not torch.equal(untrained(subject).stem.stem[0].conv.weight, loaded)


def test_errors(image, tmp_path):
    with pytest.raises(ValueError, match='give a config and a checkpoint together, or neither'):
        load_subject(CONFIG)
    with pytest.raises(ValueError, match='does not exist: give the path of an image file'):
        see(load_subject(), tmp_path / 'nowhere.png')
    (tmp_path / 'text.png').write_text('no image')
    with pytest.raises(ValueError, match='cannot be read as an image'):
        see(load_subject(), tmp_path / 'text.png')
