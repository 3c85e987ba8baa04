"""The documentation's images are made from kernels, and are images."""

from __future__ import annotations

import runpy

import cv2
import pytest
import torch

from repnext_mm.lab.draw.laws import draw_chain, draw_shortcut, draw_sum, roles_of
from repnext_mm.models.repnext import ChunkConv
from repnext_mm.reparam import Kernel, eliminate_shortcut
from tests.tools.running import ROOT


def test_images_are_written(tmp_path):
    mixer = ChunkConv.train_form(8)
    before = {key: value.clone() for key, value in mixer.state_dict().items()}
    draw_sum(mixer, tmp_path / 'a/sum.png', channel=1)
    draw_chain(mixer, tmp_path / 'chain.png')
    draw_shortcut(tmp_path / 'shortcut.png', channels=2)
    for name in ('a/sum.png', 'chain.png', 'shortcut.png'):
        image = cv2.imread(str(tmp_path / name))
        assert image.shape[1] > 800
        assert image.std() > 5
    assert all(torch.equal(value, before[key]) for key, value in mixer.state_dict().items())


def test_roles_of_an_eliminated_shortcut():
    spatial, expand, project = (torch.rand(shape) + 2 for shape in ((2, 1, 3, 3), (4, 2, 1, 1), (2, 4, 1, 1)))
    kernels = eliminate_shortcut(Kernel(spatial, None), Kernel(expand, None), Kernel(project, None))
    assert roles_of(kernels[0], spatial=True, inputs=2).tolist() == [[1, 0], [2, 0], [0, 1], [0, 2]]
    roles = roles_of(kernels[1], spatial=False, inputs=2)
    assert roles.shape == (6, 4)
    assert [(roles == role).sum().item() for role in (1, 2)] == [2, 8]  # a copy per channel, and the trained 4x2
    roles = roles_of(kernels[2], spatial=False, inputs=2)
    assert roles.shape == (2, 6)
    assert [(roles == role).sum().item() for role in (1, 2)] == [2, 8]


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (('--block', 'stages.9'), 'error: --block stages.9 is not a block of RepNeXt in train form'),
        (('--config', 'nowhere.py'), 'error: give a config and a checkpoint together, or neither'),
        (('--channel', '40'), 'error: --channel 40: the scales have channels 0 to 39'),
    ],
    ids=['block', 'config', 'channel'],
)
def test_tool_errors_are_one_sentence(monkeypatch, words, message):
    tool = str(ROOT / 'tools/draw_laws.py')
    monkeypatch.setattr('sys.argv', [tool, *words])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(tool, run_name='__main__')
    assert str(stopped.value).startswith(message)
