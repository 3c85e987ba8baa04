"""RepNeXt's building blocks in deploy form: without norms, writing over what nobody reads again; or with norms kept."""

from __future__ import annotations

from torch import Tensor, nn

from repnext_mm.reparam import Fusible, exact, folds, norm_before, read, read_norm, to_conv
from .layers import may_overwrite, overwriting
from .token_mixer import StridedMixer, absorb_norm


class FusedBlock(Fusible):
    """``MetaNeXtBlock`` with its norm folded away.

    Outside of training and graph capture, activation and shortcut are written over the convolutions' outputs: the same
    numbers, with less memory to fetch. A forward hook on a convolution in here sees its output change afterwards.
    """

    def __init__(self, token_mixer: nn.Module, channel_mixer: nn.Sequential) -> None:
        super().__init__()
        self.token_mixer = token_mixer
        self.channel_mixer = overwriting(channel_mixer)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        return _added(self.channel_mixer(self.token_mixer(x)), x)

    def fused(self, form: str) -> nn.Module:
        token_mixer = self.token_mixer.fused(form) if isinstance(self.token_mixer, Fusible) else self.token_mixer
        return self if token_mixer is self.token_mixer else FusedBlock(token_mixer, self.channel_mixer)


class FusedDownsample(nn.Module):
    """``Downsample`` with its norm folded away; overwrites as ``FusedBlock`` does."""

    def __init__(self, token_mixer: StridedMixer, channel_mixer: nn.Sequential) -> None:
        super().__init__()
        self.token_mixer = token_mixer
        self.channel_mixer = overwriting(channel_mixer)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, 2C, H / 2, W / 2)``."""
        y = self.token_mixer(x)
        return _added(self.channel_mixer(y), y)


class NormedBlock(Fusible):
    """``MetaNeXtBlock`` with merged branches and its norm kept, as the authors' fused network runs it."""

    def __init__(self, token_mixer: nn.Module, norm: nn.Module, channel_mixer: nn.Sequential) -> None:
        super().__init__()
        self.token_mixer = token_mixer
        self.norm = norm
        self.channel_mixer = channel_mixer

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        return x + self.channel_mixer(self.norm(self.token_mixer(x)))

    def fused(self, form: str) -> nn.Module:
        token_mixer = self.token_mixer.fused(form) if isinstance(self.token_mixer, Fusible) else self.token_mixer
        expand, act, project = self.channel_mixer
        if form == 'keep_norms' or not (folds(self.norm) and isinstance(expand, nn.Conv2d)):
            unchanged = token_mixer is self.token_mixer
            return self if unchanged else NormedBlock(token_mixer, self.norm, self.channel_mixer)
        kernel = norm_before(read_norm(exact(self.norm)), read(exact(expand)))
        return FusedBlock(token_mixer, nn.Sequential(to_conv(kernel, like=expand), act, project))


class NormedDownsample(Fusible):
    """``Downsample`` with merged branches and its norm kept, as the authors' fused network runs it."""

    def __init__(self, token_mixer: StridedMixer, norm: nn.Module, channel_mixer: nn.Sequential) -> None:
        super().__init__()
        self.token_mixer = token_mixer
        self.norm = norm
        self.channel_mixer = channel_mixer

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, 2C, H / 2, W / 2)``."""
        y = self.norm(self.token_mixer(x))
        return y + self.channel_mixer(y)

    def fused(self, form: str) -> nn.Module:
        if form == 'keep_norms' or not folds(self.norm):
            return self
        return FusedDownsample(absorb_norm(self.token_mixer, read_norm(exact(self.norm))), self.channel_mixer)


def _added(y: Tensor, shortcut: Tensor) -> Tensor:
    return y.add_(shortcut) if may_overwrite(y) and y.dtype == shortcut.dtype else y + shortcut
