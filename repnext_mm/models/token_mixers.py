"""Token mixers (paper, section 3): branches that equal one depthwise convolution, and the scales beside each other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from repnext_mm.errors import UserError
from repnext_mm.models.layers import depthwise, geometry
from repnext_mm.models.merged_conv import MergedBranches, MergedConv
from repnext_mm.models.mixer_forms import FORMS, MERGED_FORMS, balanced, merged
from repnext_mm.reparam import (
    Affine,
    Fusible,
    Kernel,
    add,
    as_float64,
    chain,
    dilate,
    embed,
    kernel_of,
    norm_after,
    split,
    to_conv,
)
from repnext_mm.reparam.fusible import fused_or_kept
from repnext_mm.reparam.kernel import convolve
from repnext_mm.reparam.plain_layers import is_intercepted, is_plain, why_called, why_intercepted


class RepDWConv(MergedBranches):
    """A sum of linear branches, which equals one depthwise convolution at every moment, training included."""

    @abstractmethod
    def branch_kernels(self) -> dict[str, Kernel]:
        """The kernel of each branch, a chain as one, under names that give their sizes; each in its own window."""

    def kernel(self) -> Kernel:
        window = self.geometry.kernel_size
        return add(*(embed(kernel, window) for kernel in self.branch_kernels().values()))


class RepDWConvS(RepDWConv):
    """The small scale, 3x3: parallel 3x3, 1x3, 3x1 and 2x2 dilated by 2; at stride 2 the 1x3 and 3x1 are chained."""

    def __init__(self, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.parallel = stride == 1  # a chain of strided convolutions replaces two that would not fit each other
        self.conv_3_3 = depthwise(channels, (3, 3), stride=(stride, stride))
        self.conv_3_w = depthwise(channels, (1, 3), stride=(1, stride), bias=self.parallel)
        self.conv_3_h = depthwise(channels, (3, 1), stride=(stride, 1), bias=self.parallel)
        self.conv_2_2 = depthwise(channels, (2, 2), stride=(stride, stride), dilation=2)
        self._is_built()

    @property
    def geometry(self) -> nn.Conv2d:
        return self.conv_3_3

    def branch_kernels(self) -> dict[str, Kernel]:
        row, col = kernel_of(self.conv_3_w), kernel_of(self.conv_3_h)
        cross = {'1x3': row, '3x1': col} if self.parallel else {'1x3 3x1': chain(row, col)}
        return {**cross, '3x3': kernel_of(self.conv_3_3), '2x2 wide': dilate(kernel_of(self.conv_2_2), 2)}

    def branches(self, x: Tensor) -> Tensor:
        cross = self.conv_3_w(x) + self.conv_3_h(x) if self.parallel else self.conv_3_h(self.conv_3_w(x))
        return self.conv_3_3(x) + cross + self.conv_2_2(x)


class RepDWConvM(RepDWConv):
    """The medium scale, 7x7: parallel 7x7, 5x3, 3x5, chained 1x7 and 7x1, chained 1x5 and 5x1."""

    def __init__(self, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        both, width, height = (stride, stride), (1, stride), (stride, 1)
        self.conv_7_7 = depthwise(channels, (7, 7), stride=both)
        self.conv_5_3 = depthwise(channels, (5, 3), stride=both)
        self.conv_3_5 = depthwise(channels, (3, 5), stride=both)
        self.conv_7_w = depthwise(channels, (1, 7), stride=width, bias=False)
        self.conv_7_h = depthwise(channels, (7, 1), stride=height, bias=False)
        self.conv_5_w = depthwise(channels, (1, 5), stride=width, bias=False)
        self.conv_5_h = depthwise(channels, (5, 1), stride=height, bias=False)
        self._is_built()

    @property
    def geometry(self) -> nn.Conv2d:
        return self.conv_7_7

    def branch_kernels(self) -> dict[str, Kernel]:
        return {
            '7x7': kernel_of(self.conv_7_7),
            '5x3': kernel_of(self.conv_5_3),
            '3x5': kernel_of(self.conv_3_5),
            '1x7 7x1': chain(kernel_of(self.conv_7_w), kernel_of(self.conv_7_h)),
            '1x5 5x1': chain(kernel_of(self.conv_5_w), kernel_of(self.conv_5_h)),
        }

    def branches(self, x: Tensor) -> Tensor:
        return (
            self.conv_7_7(x)
            + self.conv_5_3(x)
            + self.conv_3_5(x)
            + self.conv_7_h(self.conv_7_w(x))
            + self.conv_5_h(self.conv_5_w(x))
        )


Scale = RepDWConv | nn.Conv2d  # as built, and fused; anything may have taken its place since


class ChunkConv(Fusible):
    """A quarter of the channels for each scale: identity, small, medium, large (paper, section 3).

    The large scale stays two convolutions in every form but ``dense``: the first has a bias, which meets the zero
    padding of the second, so that no single kernel equals the pair along the border.
    """

    forms = FORMS

    def __init__(self, conv_s: nn.Module, conv_m: nn.Module, conv_l: nn.Module) -> None:
        super().__init__()
        self.conv_s = conv_s
        self.conv_m = conv_m
        self.conv_l = conv_l

    @classmethod
    def train_form(cls, channels: int) -> ChunkConv:
        """Over ``channels`` channels, with every branch."""
        if channels % 4:
            raise UserError(f'{channels} channels cannot be cut into four scales: embed_dims must be divisible by 4')
        quarter = channels // 4
        large = nn.Sequential(depthwise(quarter, (1, 11)), depthwise(quarter, (11, 1)))
        return cls(RepDWConvS(quarter), RepDWConvM(quarter), large)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        identity, small, medium, large = x.chunk(4, dim=1)
        return torch.cat([identity, self.conv_s(small), self.conv_m(medium), self.conv_l(large)], dim=1)

    def fused(self, form: str) -> nn.Module:
        if form in MERGED_FORMS and self._is_readable():
            small_kernel, medium_kernel = (
                _kernel(cast(Scale, as_float64(scale))) for scale in (self.conv_s, self.conv_m)
            )
            return merged(form, small_kernel, medium_kernel, cast(nn.Sequential, self.conv_l))
        small, medium = fused_or_kept(self.conv_s, form), fused_or_kept(self.conv_m, form)
        unchanged = small is self.conv_s and medium is self.conv_m
        return self if unchanged else ChunkConv(small, medium, self.conv_l)

    def with_balanced_norm(self, norm: Affine) -> tuple[ChunkConv, Affine] | None:
        """``balanced`` for this mixer and the norm after it; None where a scale has to be called."""
        if is_intercepted(self) or not self._is_readable():
            return None
        row, col = cast(nn.Sequential, self.conv_l)
        scales = cast(list[Scale], [self.conv_s, self.conv_m, col])
        kernels, left = balanced(norm, *(_kernel(as_float64(scale)) for scale in scales))
        small, medium, last = (
            to_conv(kernel, like=_geometry(scale)) for kernel, scale in zip(kernels, scales, strict=True)
        )
        return ChunkConv(small, medium, nn.Sequential(row, last)), left

    def _is_readable(self) -> bool:
        """Whether calling every scale is convolving with the kernels that can be read."""
        readable = _is_readable(self.conv_s) and _is_readable(self.conv_m)
        return readable and not any(reason for _, reason in self.obstacles('dense'))

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        reads_all = form in (*MERGED_FORMS, 'balanced')
        for scale in (self.conv_s, self.conv_m):
            yield scale, _why_called(scale, merged=reads_all)
        if reads_all:
            yield self.conv_l, '' if _is_pair(self.conv_l) else 'it is not the pair of convolutions that was built'
            for conv in self.conv_l.children():
                yield conv, _why_called(conv, merged=True)


class CopyConv(Fusible):
    """Every channel at two scales, stride 2: small, then medium (paper, section 3)."""

    def __init__(self, conv_s: nn.Module, conv_m: nn.Module) -> None:
        super().__init__()
        self.conv_s = conv_s
        self.conv_m = conv_m

    @classmethod
    def train_form(cls, channels: int) -> CopyConv:
        """From ``channels`` to twice as many, with every branch."""
        return cls(RepDWConvS(channels, stride=2), RepDWConvM(channels, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, 2C, H / 2, W / 2)``."""
        return torch.cat([self.conv_s(x), self.conv_m(x)], dim=1)

    def fused(self, form: str) -> nn.Module:
        small, medium = fused_or_kept(self.conv_s, form), fused_or_kept(self.conv_m, form)
        return self if small is self.conv_s and medium is self.conv_m else CopyConv(small, medium)

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        for scale in (self.conv_s, self.conv_m):
            yield scale, _why_called(scale, merged=False)


def why_without_norm(mixer: nn.Module) -> str:
    """Why a strided mixer cannot take in the norm after it, for people: it has to be called."""
    return why_intercepted(mixer) if type(mixer) is CopyConv else why_called(mixer)


def takes_norm(mixer: nn.Module) -> bool:
    """Whether a strided mixer can take in the norm after it: its scales are then read, not called."""
    if type(mixer) is CopyConv:
        return not is_intercepted(mixer) and all(map(_is_readable, _scales(mixer)))
    return isinstance(mixer, nn.Conv2d) and is_plain(mixer)


def with_norm(mixer: nn.Module, norm: Affine) -> nn.Module:
    """The deploy form of a strided mixer with the norm after it, read from an ``as_float64`` copy, folded in."""
    scales = _scales(mixer)
    kernels = _normed_kernels(map(as_float64, scales), norm)
    convs = [to_conv(kernel, like=_geometry(scale)) for scale, kernel in zip(scales, kernels, strict=True)]
    return CopyConv(*convs) if isinstance(mixer, CopyConv) else convs[0]


def run_with_norm(mixer: nn.Module, norm: Affine, x: Tensor) -> Tensor:
    """The output of a strided mixer and of the norm after it, one convolution per scale."""
    scales = _scales(mixer)
    kernels = _normed_kernels(scales, norm)
    outputs = [convolve(x, kernel, like=_geometry(scale)) for scale, kernel in zip(scales, kernels, strict=True)]
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


def with_balanced_norm(mixer: nn.Module, norm: Affine) -> tuple[nn.Module, Affine] | None:
    """``balanced`` for a block's mixer and the norm after it; None where the mixer has to be called."""
    if type(mixer) is ChunkConv:
        return mixer.with_balanced_norm(norm)
    if not isinstance(mixer, nn.Conv2d) or not is_plain(mixer):
        return None
    (kernel,), left = balanced(norm, kernel_of(as_float64(mixer)))
    return to_conv(kernel, like=mixer), left


def _scales(mixer: nn.Module) -> list[Scale]:
    """The convolutions of a strided mixer, whose outputs stand one after the other."""
    return cast(list[Scale], [mixer.conv_s, mixer.conv_m] if isinstance(mixer, CopyConv) else [mixer])


def _normed_kernels(scales: Iterable[Scale], norm: Affine) -> list[Kernel]:
    kernels = [_kernel(scale) for scale in scales]
    parts = split(norm, *(len(kernel.weight) for kernel in kernels))
    return [norm_after(kernel, part) for kernel, part in zip(kernels, parts, strict=True)]


def _is_readable(scale: nn.Module) -> bool:
    if isinstance(scale, RepDWConv):
        return type(scale).forward is MergedConv.forward and not is_intercepted(scale) and scale.mergeable()
    return isinstance(scale, nn.Conv2d) and is_plain(scale)


def _why_called(scale: nn.Module, *, merged: bool) -> str:
    if isinstance(scale, RepDWConv):
        return ''  # it says so itself
    if not isinstance(scale, nn.Conv2d) or not merged:
        return '' if isinstance(scale, nn.Conv2d) else why_called(scale)
    centered = geometry(scale) == geometry(depthwise(scale.in_channels, cast(tuple[int, int], scale.kernel_size)))
    return why_called(scale) or ('' if centered else 'its geometry was changed')


def _is_pair(large: nn.Module) -> bool:
    return type(large) is nn.Sequential and not is_intercepted(large) and len(large) == 2


def _kernel(scale: Scale) -> Kernel:
    return scale.kernel() if isinstance(scale, RepDWConv) else kernel_of(scale)


def _geometry(scale: Scale) -> nn.Conv2d:
    return scale.geometry if isinstance(scale, RepDWConv) else scale
