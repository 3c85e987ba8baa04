"""RepNeXtU's blocks and what stands between its stages, in train and in deploy form."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from repnext_mm.reparam import (
    Fusible,
    Kernel,
    convolve,
    eliminate_shortcut,
    exact,
    folds,
    norm_after,
    norm_before,
    read,
    read_norm,
    to_conv,
)  # fmt: skip
from .block import stochastic_depth
from .layers import OverwritingGELU, may_overwrite
from .rep_unit import RepUnit
from .stage import recomputed


class UnitBlock(Fusible):
    """``gelu(x) + pwconv2(gelu(pwconv1(feature(x))))``: the shortcut is activated too."""

    def __init__(self, channels: int, feature: RepUnit, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.feature = feature
        self.pwconv1 = nn.Conv2d(channels, 4 * channels, 1)
        self.act = nn.GELU()
        self.pwconv2 = nn.Conv2d(4 * channels, channels, 1)
        self.drop_path = stochastic_depth(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        return self.act(x) + self.drop_path(self.pwconv2(self.act(self.pwconv1(self.feature(x)))))

    def fused(self, form: str) -> nn.Module:
        feature = self.feature.fused(form)
        if not isinstance(feature, nn.Conv2d):
            return self
        return FusedUnitBlock(feature, self.pwconv1, self.pwconv2).fused(form)


class FusedUnitBlock(Fusible):
    """``UnitBlock`` with its unit merged and its shortcut kept; overwrites as ``FusedBlock`` does."""

    def __init__(self, feature: nn.Conv2d, pwconv1: nn.Conv2d, pwconv2: nn.Conv2d) -> None:
        super().__init__()
        self.feature = feature
        self.pwconv1 = pwconv1
        self.act = OverwritingGELU()
        self.pwconv2 = pwconv2

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        y = self.pwconv2(self.act(self.pwconv1(self.feature(x))))
        shortcut = F.gelu(x)  # x is not ours to overwrite
        return y.add_(shortcut) if may_overwrite(y) and y.dtype == shortcut.dtype else y + shortcut

    def fused(self, form: str) -> nn.Module:
        """One branch with ``no_shortcut`` (law ``eliminate_shortcut``); for all other forms this is it already."""
        if form != 'no_shortcut':
            return self
        convs = (self.feature, self.pwconv1, self.pwconv2)
        spatial, expand, project = (read(exact(conv)) for conv in convs)
        kernels = eliminate_shortcut(spatial, expand, project)
        return SingleBranch(*(to_conv(kernel, like=conv) for kernel, conv in zip(kernels, convs, strict=True)))


class SingleBranch(nn.Module):
    """``UnitBlock`` without a shortcut: nothing but convolutions and an activation, one after the other."""

    def __init__(self, spatial: nn.Conv2d, expand: nn.Conv2d, project: nn.Conv2d) -> None:
        super().__init__()
        self.block = nn.Sequential(spatial, expand, OverwritingGELU(), project)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        return self.block(x)


class UnitStage(nn.Sequential):
    """Blocks one after the other; with ``with_cp`` each is recomputed in the backward pass, to save memory."""

    def __init__(self, *blocks: nn.Module, with_cp: bool = False) -> None:
        super().__init__(*blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        if not (self.with_cp and self.training):
            return super().forward(x)
        for block in self:
            x = recomputed(block, x)
        return x


class PatchStem(nn.Sequential, Fusible):
    """4x4 patches, then a norm (law ``norm_after``)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(nn.Conv2d(in_channels, channels, 4, 4, bias=False), nn.BatchNorm2d(channels))

    def kernel(self) -> Kernel:
        """The equivalent convolution; the norm must use running statistics."""
        conv, norm = cast(tuple[nn.Conv2d, nn.Module], tuple(self))
        return norm_after(read(conv), read_norm(norm))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, I, H, W) -> (N, C, H // 4, W // 4)``."""
        conv, norm = cast(tuple[nn.Conv2d, nn.Module], tuple(self))
        return convolve(x, self.kernel(), like=conv) if folds(norm) else norm(conv(x))

    def fused(self, form: str) -> nn.Module:
        conv, norm = cast(tuple[nn.Conv2d, nn.Module], tuple(self))
        return to_conv(exact(self).kernel(), like=conv) if folds(norm) else self


class PatchMerging(nn.Sequential, Fusible):
    """A norm, then 2x2 patches, which no padding surrounds (law ``norm_before``)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(nn.BatchNorm2d(in_channels), nn.Conv2d(in_channels, channels, 2, 2))

    def kernel(self) -> Kernel:
        """The equivalent convolution; the norm must use running statistics."""
        norm, conv = cast(tuple[nn.Module, nn.Conv2d], tuple(self))
        return norm_before(read_norm(norm), read(conv), unpadded=True)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, O, H // 2, W // 2)``."""
        norm, conv = cast(tuple[nn.Module, nn.Conv2d], tuple(self))
        return convolve(x, self.kernel(), like=conv) if folds(norm) else conv(norm(x))

    def fused(self, form: str) -> nn.Module:
        norm, conv = cast(tuple[nn.Module, nn.Conv2d], tuple(self))
        return to_conv(exact(self).kernel(), like=conv) if folds(norm) else self
