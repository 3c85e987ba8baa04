"""A convolution and its norm, which becomes one convolution whenever the norm uses running statistics."""

from __future__ import annotations

from torch import Tensor, nn

from repnext_mm.reparam import Fusible, Kernel, convolve, exact, folds, norm_after, read, read_norm, to_conv
from .layers import Config, build_norm


class ConvNorm(Fusible):
    """Convolution without bias, then norm (law ``norm_after``); folded on the fly while the norm is in eval mode."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, norm_cfg: Config, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.norm = build_norm(norm_cfg, out_channels)

    def kernel(self) -> Kernel:
        """The equivalent convolution; the norm must use running statistics."""
        return norm_after(read(self.conv), read_norm(self.norm))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, O, H / stride, W / stride)``."""
        return convolve(x, self.kernel(), like=self.conv) if folds(self.norm) else self.norm(self.conv(x))

    def fused(self, form: str) -> nn.Module:
        return to_conv(exact(self).kernel(), like=self.conv) if folds(self.norm) else self
