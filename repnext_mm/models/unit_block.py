"""RepNeXtU's blocks and what stands between its stages, in train and in deploy form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from repnext_mm.models.block import stochastic_depth, why_not_dropped
from repnext_mm.models.layers import add_shortcut, called_one_by_one, gelu, overwriting
from repnext_mm.models.rep_unit import RepUnit
from repnext_mm.models.stage import recomputed
from repnext_mm.reparam import (
    Fusible,
    Kernel,
    convolve,
    eliminate_shortcut,
    exact,
    folds,
    fused_or_kept,
    is_plain,
    norm_after,
    norm_before,
    read,
    read_norm,
    to_conv,
    why_called,
    why_intercepted,
)


class UnitBlock(Fusible):
    """``gelu(x) + pwconv2(gelu(pwconv1(feature(x))))``: the shortcut is activated too."""

    forms = (*Fusible.forms, 'no_shortcut')

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
        feature = fused_or_kept(self.feature, form)
        if not isinstance(feature, nn.Conv2d) or any(reason for _, reason in self.obstacles('default')):
            return self
        return FusedUnitBlock(feature, self.pwconv1, self.pwconv2).fused(form)

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        yield self.act, why_intercepted(self.act) or ('' if type(self.act) is nn.GELU else 'it is not the GELU')
        yield self.drop_path, why_not_dropped(self.drop_path)
        if form == 'no_shortcut':
            yield self.pwconv1, why_called(self.pwconv1)
            yield self.pwconv2, why_called(self.pwconv2)


class FusedUnitBlock(Fusible):
    """``UnitBlock`` with its unit merged and its shortcut kept; overwrites as ``FusedBlock`` does."""

    forms = UnitBlock.forms

    def __init__(self, feature: nn.Conv2d, pwconv1: nn.Conv2d, pwconv2: nn.Conv2d) -> None:
        super().__init__()
        self.feature = feature
        self.pwconv1 = pwconv1
        self.act = nn.GELU()
        self.pwconv2 = pwconv2

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        y = self.pwconv1(self.feature(x))
        if not torch.jit.is_scripting():  # scripts write over nothing
            y = self.pwconv2(gelu(y, self.act, made_by=self.pwconv1))
            return add_shortcut(y, self.act(x), made_by=self.pwconv2)
        return self.pwconv2(self.act(y)) + self.act(x)

    def fused(self, form: str) -> nn.Module:
        """One branch with ``no_shortcut`` (law ``eliminate_shortcut``); for all other forms this is it already."""
        if form != 'no_shortcut' or any(reason for _, reason in self.obstacles(form)):
            return self
        convs = (self.feature, self.pwconv1, self.pwconv2)
        spatial, expand, project = (read(exact(conv)) for conv in convs)
        kernels = eliminate_shortcut(spatial, expand, project)
        return SingleBranch(*(to_conv(kernel, like=conv) for kernel, conv in zip(kernels, convs, strict=True)))

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        if form == 'no_shortcut':
            yield self.act, why_intercepted(self.act) or ('' if type(self.act) is nn.GELU else 'it is not the GELU')
            for conv in (self.feature, self.pwconv1, self.pwconv2):
                yield conv, why_called(conv)


class SingleBranch(nn.Module):
    """``UnitBlock`` without a shortcut: nothing but convolutions and an activation, one after the other."""

    def __init__(self, spatial: nn.Conv2d, expand: nn.Conv2d, project: nn.Conv2d) -> None:
        super().__init__()
        self.block = overwriting(nn.Sequential(spatial, expand, nn.GELU(), project))

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
        if not torch.jit.is_scripting():  # scripts recompute nothing
            recompute = self.with_cp and self.training and not called_one_by_one(x)
            if recompute:
                for block in self:
                    x = recomputed(block, x)
                return x
        for block in self:
            x = block(x)
        return x


class PatchStem(nn.Sequential, Fusible):
    """4x4 patches, then a norm (law ``norm_after``)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(nn.Conv2d(in_channels, channels, 4, 4, bias=False), nn.BatchNorm2d(channels))

    def kernel(self) -> Kernel:
        """The equivalent convolution; see ``mergeable`` for when there is one."""
        conv, norm = cast(tuple[nn.Conv2d, nn.Module], tuple(self))
        return norm_after(read(conv), read_norm(norm))

    def mergeable(self) -> bool:
        """Whether calling both layers is the convolution with ``kernel()``."""
        return folds(self[1]) and is_plain(self[0]) and is_plain(self[1])

    def forward(self, x: Tensor) -> Tensor:
        """``(N, I, H, W) -> (N, C, H // 4, W // 4)``."""
        if not torch.jit.is_scripting():  # scripts call every layer
            kernel = self.kernel() if not called_one_by_one(x) and self.mergeable() else None
            if kernel is not None:
                return convolve(x, kernel, like=cast(nn.Conv2d, self[0]))
        for layer in self:
            x = layer(x)
        return x

    def fused(self, form: str) -> nn.Module:
        return to_conv(exact(self).kernel(), like=cast(nn.Conv2d, self[0])) if self.mergeable() else self

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        for layer in self if folds(self[1]) else ():
            yield layer, why_called(layer)


class PatchMerging(nn.Sequential, Fusible):
    """A norm, then 2x2 patches, which no padding surrounds (law ``norm_before``)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(nn.BatchNorm2d(in_channels), nn.Conv2d(in_channels, channels, 2, 2))

    def kernel(self) -> Kernel:
        """The equivalent convolution; see ``mergeable`` for when there is one."""
        norm, conv = cast(tuple[nn.Module, nn.Conv2d], tuple(self))
        return norm_before(read_norm(norm), read(conv), unpadded=True)

    def mergeable(self) -> bool:
        """Whether calling both layers is the convolution with ``kernel()``."""
        norm, conv = self
        return folds(norm) and is_plain(norm) and is_plain(conv) and conv.padding == (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, O, H // 2, W // 2)``."""
        if not torch.jit.is_scripting():  # scripts call every layer
            kernel = self.kernel() if not called_one_by_one(x) and self.mergeable() else None
            if kernel is not None:
                return convolve(x, kernel, like=cast(nn.Conv2d, self[1]))
        for layer in self:
            x = layer(x)
        return x

    def fused(self, form: str) -> nn.Module:
        return to_conv(exact(self).kernel(), like=cast(nn.Conv2d, self[1])) if self.mergeable() else self

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        norm, conv = self
        if folds(norm):
            yield norm, why_called(norm)
            yield conv, why_called(conv) or ('' if conv.padding == (0, 0) else 'its geometry was changed')
