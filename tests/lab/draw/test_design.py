"""The figures of the design say what the modules are, and their texts fit."""

from __future__ import annotations

from dataclasses import replace

import cv2
import pytest
import torch

from repnext_mm.lab.draw.design import (
    architecture,
    branches_of,
    draw_design,
    equivalent,
    mixers,
    pattern_of,
    times,
    transforms,
    words_of,
)
from repnext_mm.models import ARCHITECTURES, ChunkConv, CopyConv, RepDWConvM, RepDWConvS, RepNeXt
from repnext_mm.reparam import embed
from tests.conftest import randomize

FIGURES = {'architecture': architecture, 'equivalent': equivalent, 'transforms': transforms}
WIDEST = replace(ARCHITECTURES['m5'], embed_dims=(1024, 2048, 4096, 8192), depths=(1, 1, 99, 1))


def words(sheet):
    return [text.get_text() for text, _ in sheet.texts]


@pytest.mark.parametrize('arch', [ARCHITECTURES['m0'], WIDEST], ids=['m0', 'wide'])
@pytest.mark.parametrize('name', FIGURES)
def test_texts_lie_in_their_boxes_and_on_no_other_text(name, arch):
    sheet = FIGURES[name](arch, 'RepNeXt')
    sheet.figure.draw_without_rendering()
    page, extents = sheet.figure.bbox, []
    for text, patch in sheet.texts:
        extent = text.get_window_extent()
        inside = patch.get_window_extent() if patch is not None else page
        assert inside.x0 < extent.x0 < extent.x1 < inside.x1, text
        assert inside.y0 < extent.y0 < extent.y1 < inside.y1, text
        assert not any(extent.overlaps(other) for other in extents), text
        extents.append(extent)


@pytest.mark.parametrize(
    'module',
    [RepDWConvS(4), RepDWConvS(4, stride=2), RepDWConvM(4), RepDWConvM(4, stride=2)],
    ids=['S', 'S strided', 'M', 'M strided'],
)
def test_branches_are_those_whose_sum_the_module_is(module):
    module = randomize(module).double()
    branches, x = branches_of(module), torch.randn(2, 4, 13, 12, dtype=torch.float64)

    def run(branch):
        y = x
        for conv in branch:
            y = conv(y)
        return y

    torch.testing.assert_close(sum(map(run, branches)), module(x), rtol=0, atol=1e-12)
    assert {id(conv) for branch in branches for conv in branch} == {
        id(conv) for conv in module.modules() if isinstance(conv, torch.nn.Conv2d)
    }
    drawn = torch.stack([pattern_of(branch, (7, 7)) for branch in branches]).amax(0) > 0
    assert torch.equal(drawn, embed(module.kernel(), (7, 7)).weight[0, 0] != 0)


def test_five_patterns_of_the_medium_scale():
    branches = branches_of(RepDWConvM(4))
    assert [words_of(branch) for branch in branches] == ['7×7', '5×3', '3×5', '1×7, 7×1', '1×5, 5×1']
    assert pattern_of(branches[1], (7, 7)).sum() == 15
    cross = pattern_of(branches[4], (7, 7))
    assert [(cross == value).sum().item() for value in (1.0, 0.5, 0.0)] == [9, 16, 24]


def test_numbers_are_read_from_the_modules():
    chunk, copy = ChunkConv.train_form(24), CopyConv.train_form(24)
    assert [(part.inputs, part.outputs, len(part.branches)) for part in mixers(chunk)] == [
        (6, 6, 0),
        (6, 6, 4),
        (6, 6, 5),
        (6, 6, 1),
    ]
    assert [(part.inputs, part.outputs, words_of(part.merged)) for part in mixers(copy)] == [
        (24, 24, '3×3'),
        (24, 24, '7×7'),
    ]
    arch = replace(ARCHITECTURES['m1'], embed_dims=(24, 48, 96, 192), depths=(1, 2, 3, 4), mlp_ratio=3)
    found = words(architecture(arch, 'mine'))
    assert {f'Stage {i}\n{i} ×\nMetaNeXt block' for i in (1, 2, 3, 4)} <= set(found)
    assert '96 × H/16 × W/16\n(14 × 14 at 224)' in found
    assert {'1×1, BN: C → 3C', '1×1, BN: 2C → 6C'} <= set(found)
    single = RepNeXt(replace(arch, token_mixer='single')).stages[1]
    note = next(text for text in words(equivalent(arch, 'mine')) if '6 channels' in text or '48 channels' in text)
    assert f'{single.blocks[0].token_mixer.weight.numel():,} in one' in note
    assert 'depthwise 11×11, stride 1' in words(equivalent(arch, 'mine'))


def test_channels_as_multiples():
    assert [times(channels, 8) for channels in (2, 8, 16, 6)] == ['C/4', 'C', '2C', '3C/4']


def test_files_are_written_small_enough_to_read(tmp_path):
    paths = draw_design('m0', tmp_path / 'new')
    assert [path.name for path in paths] == [f'design_{name}.png' for name in FIGURES]
    for path in paths:
        assert path.stat().st_size < 200 * 1024
        assert cv2.imread(str(path)).std() > 5


def test_an_equivalent_has_no_equivalent(tmp_path):
    with pytest.raises(ValueError, match='RepNeXt-M0E is a single-branch equivalent: name the network'):
        draw_design('m0e', tmp_path)
