"""Chunks of a token mixer are those that the block computes, in train form and fused."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from repnext_mm import RepNeXt
from repnext_mm.lab.draw.features import SCALES, draw_features, token_mixer_chunks
from repnext_mm.reparam import fuse
from tests.conftest import randomize, worst_error

ARCH = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 2, 1, 1)}


def backbone(**options):
    return randomize(RepNeXt(ARCH, **options)).double().eval()


def test_chunks_are_what_the_mixer_does():
    net, x = backbone(), torch.randn(2, 3, 67, 65).double()
    chunks = token_mixer_chunks(net, x, block='stages.1.blocks.1')
    stage = net.stages[1]
    entered = stage.blocks[0](stage.downsample(net.stages[0](net.stem(x)))).chunk(4, dim=1)
    mixer = stage.blocks[1].token_mixer
    expected = (
        entered[0],
        mixer.conv_s.branches(entered[1]),
        mixer.conv_m.branches(entered[2]),
        mixer.conv_l(entered[3]),
    )
    assert tuple(chunks) == SCALES
    for chunk, value in zip(chunks.values(), expected, strict=True):
        assert worst_error(chunk, value) < 1e-13
    fused = token_mixer_chunks(fuse(net)[0], x, block='stages.1.blocks.1')
    for scale in SCALES:
        assert worst_error(fused[scale], chunks[scale]) < 1e-12
    assert not any(module._forward_hooks for module in net.modules())


def test_image_is_written(tmp_path):
    net, image = backbone().float(), np.zeros((64, 64, 3), np.uint8)
    x = torch.randn(1, 3, 64, 64)
    path = draw_features(net, x, image, tmp_path / 'a/b.png', block='stages.0.blocks.0', title='net')
    assert cv2.imread(str(path)).std() > 5
    with pytest.raises(ValueError, match=r'is not a PNG file: give a path that ends in \.png'):
        draw_features(net, x, image, tmp_path / 'net.jpg', block='stages.0.blocks.0', title='net')
    with pytest.raises(ValueError, match='net is fused already: give weights in train form'):
        draw_features(fuse(net)[0], x, image, tmp_path / 'c.png', block='stages.0.blocks.0', title='net')


def test_unknown_blocks():
    x = torch.randn(1, 3, 64, 64).double()
    with pytest.raises(ValueError, match=r"'stages\.9' is not a block with four scales: choose from stages\.0"):
        token_mixer_chunks(backbone(), x, block='stages.9')
    single = RepNeXt({**ARCH, 'token_mixer': 'single'}).double().eval()
    with pytest.raises(ValueError, match='only the multi-scale RepNeXt, m0 to m5, has them'):
        token_mixer_chunks(single, x, block='stages.0.blocks.0')
