"""The authors' downsampling ablation on ConvNeXt-femto."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from repnext_mm.models.convnext_ablation import DownsampleMixer
from repnext_mm.reparam.fuse import count_parameters
from tests.configs import CONFIGS

pytest.importorskip('mmpretrain')


@pytest.mark.parametrize(
    ('kind', 'parameters'), [('baseline', 5_217_784), ('modified_a', 5_252_728), ('modified_b', 5_252_728)]
)
def test_published_counts_and_shapes(kind, parameters):
    init_default_scope('mmpretrain')
    model = MODELS.build(Config.fromfile(CONFIGS / f'convnext_femto_{kind}_imagenet.py').model).eval()
    assert count_parameters(model) == parameters
    assert model(torch.randn(1, 3, 64, 64), mode='tensor').shape == (1, 1000)


@pytest.mark.parametrize('shortcut', ['before_norm', 'after_norm'])
def test_where_the_shortcut_starts(shortcut):
    class Tripled(nn.Module):
        def forward(self, x):
            return 3 * x

    mixer = DownsampleMixer(4, Tripled(), shortcut=shortcut)
    for parameter in mixer.channel_mixer.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(1, 4, 7, 9)
    expected = mixer.token_mixer(x) * (1 if shortcut == 'before_norm' else 3)
    assert expected.shape == (1, 8, 4, 5)
    torch.testing.assert_close(mixer(x), expected)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(shortcut='none'), 'unknown'),
        (dict(shortcut='after_norm', arch=dict(depths=[1] * 4, channels=[8, 16, 24, 32])), 'must double'),
    ],
)
def test_refuses_what_cannot_be(options, message):
    init_default_scope('mmpretrain')
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type='ConvNeXtWithMixedDownsample', **options))
