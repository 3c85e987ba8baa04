"""RepNeXt's building blocks in deploy form: without norms, writing over what nobody reads again; or with norms kept."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from repnext_mm.models.layers import add_shortcut, overwriting
from repnext_mm.models.token_mixer import StridedMixer, absorb_norm, is_readable, why_unreadable
from repnext_mm.reparam import (
    Fusible,
    exact,
    folds,
    fused_or_kept,
    is_intercepted,
    is_plain,
    norm_before,
    read,
    read_norm,
    to_conv,
    why_called,
    why_intercepted,
)


class FusedBlock(Fusible):
    """``MetaNeXtBlock`` with its norm folded away.

    Outside of training and graph capture, activation and shortcut are written over the convolutions' outputs, unless a
    hook has seen those: the same numbers, with less memory to fetch.
    """

    def __init__(self, token_mixer: nn.Module, channel_mixer: nn.Sequential) -> None:
        super().__init__()
        self.token_mixer = token_mixer
        self.channel_mixer = overwriting(channel_mixer)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        y = self.channel_mixer(self.token_mixer(x))
        if not torch.jit.is_scripting():  # scripts write over nothing
            return add_shortcut(y, x, made_by=self.channel_mixer)
        return y + x

    def fused(self, form: str) -> nn.Module:
        token_mixer = fused_or_kept(self.token_mixer, form)
        return self if token_mixer is self.token_mixer else FusedBlock(token_mixer, self.channel_mixer)


class FusedDownsample(nn.Module):
    """``Downsample`` with its norm folded away; overwrites as ``FusedBlock`` does."""

    def __init__(self, token_mixer: StridedMixer, channel_mixer: nn.Sequential) -> None:
        super().__init__()
        self.token_mixer = token_mixer
        self.channel_mixer = overwriting(channel_mixer)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, 2C, H / 2, W / 2)``."""
        shortcut = self.token_mixer(x)
        y = self.channel_mixer(shortcut)
        if not torch.jit.is_scripting():  # scripts write over nothing
            return add_shortcut(y, shortcut, made_by=self.channel_mixer)
        return y + shortcut


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
        token_mixer, mixer = fused_or_kept(self.token_mixer, form), self.channel_mixer
        if form == 'keep_norms' or any(reason for _, reason in self._obstacles()) or not folds(self.norm):
            unchanged = token_mixer is self.token_mixer
            return self if unchanged else NormedBlock(token_mixer, self.norm, mixer)
        expand, *others = mixer
        assert isinstance(expand, nn.Conv2d)  # see _obstacles
        kernel = norm_before(read_norm(exact(self.norm)), read(exact(expand)))
        return FusedBlock(token_mixer, nn.Sequential(to_conv(kernel, like=expand), *others))

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        if form != 'keep_norms' and folds(self.norm):
            yield from self._obstacles()

    def _obstacles(self) -> Iterator[tuple[nn.Module, str]]:
        yield self.norm, why_called(self.norm)
        yield self.channel_mixer, why_intercepted(self.channel_mixer)
        expand = self.channel_mixer[0]
        yield expand, why_called(expand) if isinstance(expand, nn.Conv2d) else 'it is not a convolution'


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
        if form == 'keep_norms' or not (folds(self.norm) and is_plain(self.norm) and is_readable(self.token_mixer)):
            return self
        if is_intercepted(self.channel_mixer):
            return self
        return FusedDownsample(absorb_norm(self.token_mixer, read_norm(exact(self.norm))), self.channel_mixer)

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        if form != 'keep_norms' and folds(self.norm):
            yield self.norm, why_called(self.norm)
            yield self.token_mixer, why_unreadable(self.token_mixer)
            yield self.channel_mixer, why_intercepted(self.channel_mixer)
