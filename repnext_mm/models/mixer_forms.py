"""Deploy forms of the multi-scale mixer: scales merged into larger convolutions, and norms folded with int8 in mind."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repnext_mm.models.layers import called_one_by_one, depthwise
from repnext_mm.reparam import (
    Affine,
    Fusible,
    Kernel,
    chain_biased,
    concat,
    embed,
    identity,
    kernel_of,
    norm_after,
    split,
    to_conv,
)

MERGED_FORMS = ('half', 'three_quarters', 'dense')
"""Scales merged into larger ones: small and medium (``half`` of the channels), the identity too, all in one 11x11."""

FORMS = (*Fusible.forms, *MERGED_FORMS, 'balanced')
"""Every form of RepNeXt. ``keep_norms`` is what the authors call fused; all others fold every norm.

``balanced`` has the layers of ``default`` and is as fast; only a block's norm goes elsewhere, see ``balanced``.
"""


def merged(form: str, small: Kernel, medium: Kernel, large: nn.Sequential) -> nn.Module:
    """One of ``MERGED_FORMS`` of a mixer whose scales are given by their kernels, and by the pair of the large one.

    Args:
        form: ``half``: small and medium in one 7x7; ``three_quarters``: the identity too; ``dense``: everything in one
            11x11, with an exact correction of the border.
        small: ``(C / 4, 1, 3, 3)``.
        medium: ``(C / 4, 1, 7, 7)``.
        large: the 1x11 and the 11x1 convolution; dtype, device and mode of the result are theirs.
    """
    row, col = cast(tuple[nn.Conv2d, nn.Conv2d], tuple(large))
    quarter = row.in_channels
    kept = identity(quarter, (7, 7), like=medium.weight)
    both = [embed(small, (7, 7)), medium]
    if form == 'half':
        return HalfMixer(_conv(concat(*both), like=row), large)
    if form == 'three_quarters':
        return HalfMixer(_conv(concat(kept, *both), like=row), large)
    wide, border = chain_biased(_as(medium, kernel_of(row)), _as(medium, kernel_of(col)))
    every = concat(*(embed(kernel, (11, 11)) for kernel in (kept, *both)), wide)
    return DenseMixer(_conv(every, like=row), _conv(border, like=row))


def balanced(norm: Affine, *scales: Kernel) -> tuple[list[Kernel], Affine]:
    """A block's norm in the convolutions of its mixer, and what is left of it for the 1x1 behind.

    ``default`` folds all of the norm into the columns of that 1x1. A column is then as large as its channel's scale,
    while int8 has one step for all columns of an output channel (or of the layer), so that small ones are rounded away.
    Here each channel's scale meets the kernel of that channel alone. The channels that pass through the mixer have no
    kernel: their share stays in the columns.

    Args:
        norm: of the mixer's output.
        scales: what makes the last channels of the mixer, in their order.

    Returns:
        The kernels with their norm (law ``norm_after``), and a norm that leaves their channels as they are.
    """
    sizes = [len(kernel.weight) for kernel in scales]
    made = sum(sizes)
    passed, *parts = split(norm, len(norm.scale) - made, *sizes)
    scale, shift = (torch.cat([own, own.new_full((made,), value)]) for own, value in zip(passed, (1, 0), strict=True))
    return [norm_after(kernel, part) for kernel, part in zip(scales, parts, strict=True)], Affine(scale, shift)


class HalfMixer(nn.Module):
    """A 7x7 convolution of the middle channels beside the large pair; channels that neither reads pass through."""

    def __init__(self, conv: nn.Conv2d, conv_l: nn.Sequential) -> None:
        super().__init__()
        self.conv = conv
        self.conv_l = conv_l
        large = cast(nn.Conv2d, conv_l[0]).in_channels
        passed = 4 * large - large - conv.in_channels
        self.sizes = [size for size in (passed, conv.in_channels, large) if size]

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        parts = x.split(self.sizes, dim=1)
        if len(self.sizes) == 2:
            return torch.cat([self.conv(parts[0]), self.conv_l(parts[1])], dim=1)
        return torch.cat([parts[0], self.conv(parts[1]), self.conv_l(parts[2])], dim=1)


class DenseMixer(nn.Module):
    """One 11x11 convolution; the rows along the border of its last quarter are corrected (law ``chain_biased``)."""

    def __init__(self, conv: nn.Conv2d, border: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.border = border
        self.reach = border.kernel_size[0] // 2
        self.kept = conv.out_channels - border.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        y, height = self.conv(x), x.shape[2]
        if not torch.jit.is_scripting():  # neither graphs nor hooks allow writing to slices
            seen = called_one_by_one(x) or torch.onnx.is_in_onnx_export() or bool(self.conv._forward_hooks)
            if not seen:
                return self._corrected(y)
        ones = y.new_ones([1, self.border.in_channels, height, 1])
        return y + F.pad(self.border(ones), (0, 0, 0, 0, self.kept, 0))

    def _corrected(self, y: Tensor) -> Tensor:
        height = y.shape[2]
        rows = min(self.reach, height)
        ones = y.new_ones([1, self.border.in_channels, 2 * self.reach, 1])
        correction = self.border(ones).to(y.dtype)  # from the weights as they are now
        large = y[:, self.kept :]
        large[:, :, :rows] += correction[:, :, :rows]
        large[:, :, height - rows :] += correction[:, :, 2 * self.reach - rows :]
        return y


def _conv(kernel: Kernel, *, like: nn.Conv2d) -> nn.Conv2d:
    channels, _, height, width = kernel.weight.shape
    geometry = depthwise(channels, (height, width)).to(like.weight.device, like.weight.dtype)
    return to_conv(kernel, like=geometry.train(like.training))


def _as(reference: Kernel, kernel: Kernel) -> Kernel:
    weight, bias = kernel
    return Kernel(weight.detach().to(reference.weight), None if bias is None else bias.detach().to(reference.weight))
