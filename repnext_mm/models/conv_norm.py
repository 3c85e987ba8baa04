"""A convolution and its norm, which becomes one convolution whenever the norm uses running statistics."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from repnext_mm.models.layers import Config, build_norm, called_one_by_one
from repnext_mm.reparam import (
    Fusible,
    Kernel,
    convolve,
    exact,
    folds,
    is_plain,
    norm_after,
    read,
    read_norm,
    to_conv,
    why_called,
)


class ConvNorm(Fusible):
    """Convolution without bias, then norm (law ``norm_after``); folded on the fly while the norm is in eval mode."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, norm_cfg: Config, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.norm = build_norm(norm_cfg, out_channels)

    def kernel(self) -> Kernel:
        """The equivalent convolution; see ``mergeable`` for when there is one."""
        return norm_after(read(self.conv), read_norm(self.norm))

    def mergeable(self) -> bool:
        """Whether calling both layers is the convolution with ``kernel()``."""
        return folds(self.norm) and is_plain(self.conv) and is_plain(self.norm)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, O, H / stride, W / stride)``."""
        if not torch.jit.is_scripting():  # scripts call every layer
            kernel = self.kernel() if not called_one_by_one(x) and self.mergeable() else None
            if kernel is not None:
                return convolve(x, kernel, like=self.conv)
        return self.norm(self.conv(x))

    def fused(self, form: str) -> nn.Module:
        return to_conv(exact(self).kernel(), like=self.conv) if self.mergeable() else self

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        if folds(self.norm):
            for layer in (self.conv, self.norm):
                yield layer, why_called(layer)
