"""The authors' three ConvNeXt-femto files, in timm's names, load into the ablation's models: same outputs."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from torch import nn

from repnext_mm.apis.build import build_model
from tests.configs import CONFIGS
from tests.conftest import worst_error

pytest.importorskip('mmpretrain')
timm = pytest.importorskip('timm')
KINDS = ('baseline', 'modified_a', 'modified_b')


class Downsample(nn.Module):
    """The authors' module, by the description in their README: pixels last for the linear layers."""

    def __init__(self, channels: int, *, shortcut: str) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, 2 * channels, 7, stride=2, padding=3, groups=channels)
        self.norm = nn.LayerNorm(2 * channels, eps=1e-6)
        self.pwconv1, self.pwconv2 = (nn.Linear(2 * channels, 2 * channels) for _ in range(2))
        self.shortcut = shortcut

    def forward(self, x):
        x = self.dwconv(x).permute(0, 2, 3, 1)
        normed = self.norm(x)
        mixed = self.pwconv2(nn.functional.gelu(self.pwconv1(normed)))
        return ((x if self.shortcut == 'modified_a' else normed) + mixed).permute(0, 3, 1, 2)


def published(kind: str) -> nn.Module:
    """timm's ConvNeXt-femto with the authors' downsampling and random weights, layer scales and norms."""
    model = timm.create_model('convnext_femto')
    if kind != 'baseline':
        for stage, channels in zip(list(model.stages)[1:], (48, 96, 192), strict=True):
            stage.downsample = Downsample(channels, shortcut=kind)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.double().eval()


def facebooks_names(key: str) -> str:
    """The keys of ConvNeXt's own code."""
    for old, new in (
        ('stem.', 'downsample_layers.0.'),
        ('head.norm.', 'norm.'),
        ('head.fc.', 'head.'),
        ('.blocks.', '.'),
        ('.conv_dw.', '.dwconv.'),
        ('.mlp.fc', '.pwconv'),
    ):
        key = key.replace(old, new)
    parts = key.split('.')
    return f'downsample_layers.{parts[1]}.{".".join(parts[3:])}' if 'downsample' in parts else key


@pytest.mark.parametrize('names', ['timm', 'facebook'])
@pytest.mark.parametrize('kind', KINDS)
def test_same_outputs(kind, names, tmp_path):
    source = published(kind)
    state = source.state_dict()
    if names == 'facebook':  # pointwise layers are linear there
        state = {
            facebooks_names(key): value[..., 0, 0] if '.mlp.fc' in key and value.dim() == 4 else value
            for key, value in state.items()
        }
    torch.save({'model': state, 'epoch': 119}, tmp_path / 'femto.pth')
    config = Config.fromfile(CONFIGS / f'convnext_femto_{kind}_imagenet.py')
    config.model.train_cfg = None
    model = build_model(config, tmp_path / 'femto.pth').double().eval()
    model.load_state_dict(load_exactly(model, tmp_path / 'femto.pth'))
    image = torch.randn(2, 3, 65, 97).double()
    with torch.no_grad():
        assert worst_error(model(image, mode='tensor'), source(image)) < 1e-12


def load_exactly(model, path):
    """In float64: the model was built, and loaded, in float32."""
    from repnext_mm.checkpoints import read_checkpoint
    from repnext_mm.checkpoints.load import fit

    state, report = fit(read_checkpoint(path), model.state_dict(), source=str(path))
    assert report.loaded == report.expected == len(model.state_dict())
    assert not report.dropped
    return state


def test_a_file_of_the_other_kind_is_refused(tmp_path):
    torch.save({'model': published('baseline').state_dict()}, tmp_path / 'femto.pth')
    config = Config.fromfile(CONFIGS / 'convnext_femto_modified_a_imagenet.py')
    with pytest.raises(ValueError, match='does not fit this ImageClassifier') as error:
        build_model(config, tmp_path / 'femto.pth')
    assert 'arch' not in str(error.value)
