"""Multi-scale token mixers: chunks of the channels at stride 1, copies of all channels at stride 2."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from repnext_mm.reparam import Affine, Fusible, Kernel, convolve, exact, norm_after, read, split, to_conv
from .layers import depthwise
from .merged_mixer import MERGED_FORMS, merged
from .rep_dw import RepDWConv, RepDWConvM, RepDWConvS

Scale = RepDWConv | nn.Conv2d


class ChunkConv(Fusible):
    """A quarter of the channels for each scale: identity, small, medium, large (paper, section 3).

    The large scale stays two convolutions in every form: the first has a bias, which meets the zero padding of the
    second, so that no single kernel equals the pair along the border.
    """

    def __init__(self, conv_s: Scale, conv_m: Scale, conv_l: nn.Module) -> None:
        super().__init__()
        self.conv_s = conv_s
        self.conv_m = conv_m
        self.conv_l = conv_l

    @classmethod
    def train_form(cls, channels: int) -> ChunkConv:
        """Over ``channels`` channels, with every branch."""
        if channels % 4:
            raise ValueError(f'{channels} channels cannot be cut into four scales: embed_dims must be divisible by 4')
        quarter = channels // 4
        large = nn.Sequential(depthwise(quarter, (1, 11)), depthwise(quarter, (11, 1)))
        return cls(RepDWConvS(quarter), RepDWConvM(quarter), large)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        identity, small, medium, large = x.chunk(4, dim=1)
        return torch.cat([identity, self.conv_s(small), self.conv_m(medium), self.conv_l(large)], dim=1)

    def fused(self, form: str) -> nn.Module:
        if form in MERGED_FORMS:
            small_kernel, medium_kernel = _kernel(exact(self.conv_s)), _kernel(exact(self.conv_m))
            return merged(form, small_kernel, medium_kernel, cast(nn.Sequential, self.conv_l))
        small, medium = _fused(self.conv_s, form), _fused(self.conv_m, form)
        unchanged = small is self.conv_s and medium is self.conv_m
        return self if unchanged else ChunkConv(small, medium, self.conv_l)


class CopyConv(Fusible):
    """Every channel at two scales, stride 2: small, then medium (paper, section 3)."""

    def __init__(self, conv_s: Scale, conv_m: Scale) -> None:
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

    def fused(self, form: str) -> CopyConv:
        small, medium = _fused(self.conv_s, form), _fused(self.conv_m, form)
        return self if small is self.conv_s and medium is self.conv_m else CopyConv(small, medium)


StridedMixer = CopyConv | nn.Conv2d  # the E variants have one convolution for both scales


def mix_and_norm(x: Tensor, mixer: StridedMixer, norm: Affine) -> Tensor:
    """``norm(mixer(x))`` with the norm folded into the mixer's kernels on the fly (law ``norm_after``)."""
    scales = _scales(mixer)
    kernels = _normed_kernels(scales, norm)
    outputs = [convolve(x, kernel, like=_geometry(scale)) for scale, kernel in zip(scales, kernels, strict=True)]
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


def absorb_norm(mixer: StridedMixer, norm: Affine) -> StridedMixer:
    """The deploy form of a mixer with the norm of its output folded in; ``norm`` as read from an ``exact`` copy."""
    scales = _scales(mixer)
    kernels = _normed_kernels([exact(scale) for scale in scales], norm)
    convs = [to_conv(kernel, like=_geometry(scale)) for scale, kernel in zip(scales, kernels, strict=True)]
    return CopyConv(*convs) if isinstance(mixer, CopyConv) else convs[0]


def _scales(mixer: StridedMixer) -> list[Scale]:
    return [mixer.conv_s, mixer.conv_m] if isinstance(mixer, CopyConv) else [mixer]


def _normed_kernels(scales: list[Scale], norm: Affine) -> list[Kernel]:
    kernels = [_kernel(scale) for scale in scales]
    parts = split(norm, *(len(kernel.weight) for kernel in kernels))
    return [norm_after(kernel, part) for kernel, part in zip(kernels, parts, strict=True)]


def _kernel(scale: Scale) -> Kernel:
    return scale.kernel() if isinstance(scale, RepDWConv) else read(scale)


def _geometry(scale: Scale) -> nn.Conv2d:
    return scale.geometry if isinstance(scale, RepDWConv) else scale


def _fused(scale: Scale, form: str) -> Scale:
    return scale.fused(form) if isinstance(scale, RepDWConv) else scale
