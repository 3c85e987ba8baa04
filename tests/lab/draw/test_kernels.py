"""Branches add up to the kernel that runs, and every block is drawn."""

from __future__ import annotations

import cv2
import pytest
import torch

from repnext_mm import RepNeXt
from repnext_mm.lab.draw.kernels import draw_kernels, effective_kernels
from repnext_mm.models import RepNeXtU
from repnext_mm.reparam import add, embed, fuse
from tests.conftest import randomize, worst_error

ARCH = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}
UNIT = {'dims': (6, 6, 12, 12), 'depths': (1, 1, 1, 1)}


@pytest.mark.parametrize(
    'net', [RepNeXt(ARCH), RepNeXtU(UNIT, unit='u2'), RepNeXtU(UNIT, unit='u3')], ids=['multi', 'u2', 'u3']
)
def test_branches_add_up(net):
    kernels = effective_kernels(randomize(net).eval())
    fused = dict(fuse(net)[0].named_modules())
    added = 0
    for name, branches in kernels.items():
        *parts, whole = branches.values()
        if name.endswith('conv_l'):
            row, col = (part.weight for part in parts)
            assert worst_error(whole.weight, col * row) < 1e-15
            continue
        total = add(*(embed(part, whole.weight.shape[2:]) for part in parts))
        assert worst_error(total.weight, whole.weight) < 1e-14
        assert worst_error(total.bias, whole.bias) < 1e-14
        if '.downsample.' not in name:  # there, the norm is folded in as well
            assert worst_error(fused[name].weight, whole.weight) < 1e-6
            added += 1
    assert added == (8 if isinstance(net, RepNeXt) else 4)
    assert not any(kernel.weight.requires_grad for branches in kernels.values() for kernel in branches.values())


@pytest.mark.parametrize('channel', [None, pytest.param(1, marks=pytest.mark.slow)])
def test_image_has_a_row_for_each_block(tmp_path, channel):
    net = RepNeXt(ARCH).eval()
    heights = []
    for stages in (None, [1]):
        path = draw_kernels(net, tmp_path / 'kernels.png', title='net', stages=stages, channel=channel)
        image = cv2.imread(str(path))
        assert image.std() > 5
        heights.append(image.shape[0])
    assert heights[0] > 2 * heights[1]  # 7 rows, 2 rows


def test_errors(tmp_path):
    net = RepNeXt(ARCH).eval()
    for fused in (fuse(net)[0], RepNeXt({**ARCH, 'token_mixer': 'single'}), torch.nn.Linear(1, 1)):
        with pytest.raises(ValueError, match='has no branches: give weights in train form'):
            effective_kernels(fused)
    with pytest.raises(ValueError, match=r'stages \[7\] have no branches: choose from 0 to 3'):
        draw_kernels(net, tmp_path / 'k.png', title='net', stages=[7])
    with pytest.raises(ValueError, match='channel 2: this kernel has channels 0 to 1'):
        draw_kernels(net, tmp_path / 'k.png', title='net', channel=2)
