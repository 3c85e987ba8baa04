"""Receptive fields of networks whose field is known, and of RepNeXt."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from repnext_mm import RepNeXt
from repnext_mm.lab.draw.receptive_field import draw_receptive_fields, noise_images, receptive_fields, side_holding
from repnext_mm.reparam import fuse
from tests.conftest import randomize


class Known(nn.Module):
    """A level that sees 3x3 pixels equally, and one that sees 5x5."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward(self, x):
        y = self.conv(x)
        return y, self.conv(y)


def test_a_known_field():
    first, second = receptive_fields(Known(), noise_images(2, size=33))
    expected = np.zeros((33, 33))
    expected[15:18, 15:18] = 1
    assert np.allclose(first, expected)
    triangle = np.array([1, 2, 3, 2, 1])
    assert np.allclose(second[14:19, 14:19], np.outer(triangle, triangle) / 9)
    assert second.sum() == pytest.approx(81 / 9)
    assert [side_holding(first, share) for share in (0.1, 0.5, 1.0)] == [1, 3, 3]
    assert [side_holding(second, share) for share in (0.1, 0.5, 1.0)] == [1, 3, 5]


def test_fused_sees_the_same(tmp_path):
    net = randomize(RepNeXt({'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}, out_indices=(0, 2))).eval()
    images = noise_images(2, size=64)
    rows = {name: receptive_fields(model, images) for name, model in (('train', net), ('fused', fuse(net)[0]))}
    for train, fused in zip(*rows.values(), strict=True):
        assert train.shape == (64, 64)
        assert np.abs(train - fused).max() < 1e-4
    sides = [side_holding(field, 0.9) for field in rows['train']]
    assert sides[0] < sides[1]
    assert all(parameter.grad is None for parameter in net.parameters())
    path = draw_receptive_fields(rows, tmp_path / 'erf.png', title='net', levels=(0, 2))
    assert cv2.imread(str(path)).std() > 5


def test_errors():
    with pytest.raises(ValueError, match='0 images of 64 pixels: take at least 1 image'):
        noise_images(0, size=64)
    with pytest.raises(ValueError, match='give one size'):
        receptive_fields(Known(), [torch.randn(1, 3, 8, 8), torch.randn(1, 3, 9, 8)])
