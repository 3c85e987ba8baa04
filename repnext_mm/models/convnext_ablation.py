"""ConvNeXt with RepNeXt's downsampling: the authors' ablation (120 epochs of ImageNet, ConvNeXt-femto)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from repnext_mm.errors import UserError
from repnext_mm.models.registry import register

SHORTCUTS = ('before_norm', 'after_norm')


class DownsampleMixer(nn.Module):
    """A strided depthwise 7x7 that doubles the channels, a norm, and a residual pair of 1x1 convolutions.

    Args:
        in_channels: twice as many come out.
        norm: of the doubled channels.
        shortcut: where the residual starts: ``'before_norm'`` (the authors' ModifiedA: past norm and mixer) or
            ``'after_norm'`` (ModifiedB, RepNeXt's own way: past the mixer only).
    """

    def __init__(self, in_channels: int, norm: nn.Module, *, shortcut: str) -> None:
        super().__init__()
        channels = 2 * in_channels
        self.token_mixer = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, groups=in_channels)
        self.norm = norm
        pointwise = (nn.Conv2d(channels, channels, 1) for _ in range(2))
        self.channel_mixer = nn.Sequential(next(pointwise), nn.GELU(), next(pointwise))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, 2C, ceil(H / 2), ceil(W / 2))``."""
        x = self.token_mixer(x)
        normed = self.norm(x)
        return (x if self.shortcut == 'before_norm' else normed) + self.channel_mixer(normed)


@register('ConvNeXtWithMixedDownsample')
def build_convnext_with_mixed_downsample(*, shortcut: str, **convnext: Any) -> nn.Module:
    """MMPretrain's ``ConvNeXt`` with ``DownsampleMixer`` between its stages; a function, to import MMPretrain late.

    Args:
        shortcut: see ``DownsampleMixer``.
        convnext: arguments of MMPretrain's ``ConvNeXt``.

    Raises:
        ValueError: ``shortcut`` is unknown, or the widths do not double from stage to stage.
    """
    from mmpretrain.models.backbones import ConvNeXt
    from mmpretrain.models.utils import build_norm_layer

    if shortcut not in SHORTCUTS:
        raise UserError(f'shortcut {shortcut!r} is unknown: choose one of {", ".join(SHORTCUTS)}')
    backbone = ConvNeXt(**convnext)
    norm_cfg = convnext.get('norm_cfg', {'type': 'LN2d', 'eps': 1e-6})
    for index, (channels, following) in enumerate(zip(backbone.channels, backbone.channels[1:], strict=False), start=1):
        if following != 2 * channels:
            raise UserError(f'channels {backbone.channels} must double from stage to stage')
        norm = build_norm_layer(norm_cfg, following)
        backbone.downsample_layers[index] = DownsampleMixer(channels, norm, shortcut=shortcut)
    return backbone
