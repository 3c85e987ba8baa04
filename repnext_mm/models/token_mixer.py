"""Multi-scale token mixers: chunks of the channels at stride 1, copies of all channels at stride 2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from repnext_mm.models.layers import depthwise, geometry
from repnext_mm.models.merged_mixer import FORMS, MERGED_FORMS, merged
from repnext_mm.models.rep_dw import RepDWConv, RepDWConvM, RepDWConvS
from repnext_mm.reparam import (
    Affine,
    Fusible,
    Kernel,
    convolve,
    exact,
    fused_or_kept,
    is_intercepted,
    is_plain,
    norm_after,
    read,
    split,
    to_conv,
    why_called,
    why_intercepted,
)

Scale = RepDWConv | nn.Conv2d  # as built; anything may have taken its place since


class ChunkConv(Fusible):
    """A quarter of the channels for each scale: identity, small, medium, large (paper, section 3).

    The large scale stays two convolutions in every form: the first has a bias, which meets the zero padding of the
    second, so that no single kernel equals the pair along the border.
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
            raise ValueError(f'{channels} channels cannot be cut into four scales: embed_dims must be divisible by 4')
        quarter = channels // 4
        large = nn.Sequential(depthwise(quarter, (1, 11)), depthwise(quarter, (11, 1)))
        return cls(RepDWConvS(quarter), RepDWConvM(quarter), large)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        identity, small, medium, large = x.chunk(4, dim=1)
        return torch.cat([identity, self.conv_s(small), self.conv_m(medium), self.conv_l(large)], dim=1)

    def fused(self, form: str) -> nn.Module:
        readable = _is_readable(self.conv_s) and _is_readable(self.conv_m)
        if form in MERGED_FORMS and readable and not any(reason for _, reason in self.obstacles(form)):
            small_kernel, medium_kernel = (_kernel(cast(Scale, exact(scale))) for scale in (self.conv_s, self.conv_m))
            return merged(form, small_kernel, medium_kernel, cast(nn.Sequential, self.conv_l))
        small, medium = fused_or_kept(self.conv_s, form), fused_or_kept(self.conv_m, form)
        unchanged = small is self.conv_s and medium is self.conv_m
        return self if unchanged else ChunkConv(small, medium, self.conv_l)

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        for scale in (self.conv_s, self.conv_m):
            yield scale, _why_called(scale, merged=form in MERGED_FORMS)
        if form in MERGED_FORMS:
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


StridedMixer = nn.Module  # a CopyConv; or the one convolution for both scales that the E variants have


def is_readable(mixer: StridedMixer) -> bool:
    """Whether calling a strided mixer is convolving with the kernels that ``mix_and_norm`` and ``absorb_norm`` read."""
    if type(mixer) is CopyConv:
        return not is_intercepted(mixer) and _is_readable(mixer.conv_s) and _is_readable(mixer.conv_m)
    return isinstance(mixer, nn.Conv2d) and is_plain(mixer)


def why_unreadable(mixer: StridedMixer) -> str:
    """Why a strided mixer, its parts apart, is not readable, for people; empty where it is."""
    return why_intercepted(mixer) if type(mixer) is CopyConv else why_called(mixer)


def mix_and_norm(x: Tensor, mixer: StridedMixer, norm: Affine) -> Tensor:
    """``norm(mixer(x))`` with the norm folded into the kernels of a readable mixer (law ``norm_after``)."""
    scales = _scales(mixer)
    kernels = _normed_kernels(scales, norm)
    outputs = [convolve(x, kernel, like=_geometry(scale)) for scale, kernel in zip(scales, kernels, strict=True)]
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


def absorb_norm(mixer: StridedMixer, norm: Affine) -> StridedMixer:
    """The deploy form of a readable mixer with the norm of its output folded in, as read from an ``exact`` copy."""
    scales = _scales(mixer)
    kernels = _normed_kernels([exact(scale) for scale in scales], norm)
    convs = [to_conv(kernel, like=_geometry(scale)) for scale, kernel in zip(scales, kernels, strict=True)]
    return CopyConv(*convs) if isinstance(mixer, CopyConv) else convs[0]


def _scales(mixer: StridedMixer) -> list[Scale]:
    return cast(list[Scale], [mixer.conv_s, mixer.conv_m] if isinstance(mixer, CopyConv) else [mixer])


def _normed_kernels(scales: list[Scale], norm: Affine) -> list[Kernel]:
    kernels = [_kernel(scale) for scale in scales]
    parts = split(norm, *(len(kernel.weight) for kernel in kernels))
    return [norm_after(kernel, part) for kernel, part in zip(kernels, parts, strict=True)]


def _is_readable(scale: nn.Module) -> bool:
    if isinstance(scale, RepDWConv):
        return type(scale).forward is RepDWConv.forward and not is_intercepted(scale) and scale.mergeable()
    return isinstance(scale, nn.Conv2d) and is_plain(scale)


def _why_called(scale: nn.Module, *, merged: bool) -> str:
    if isinstance(scale, RepDWConv):
        return ''  # it says so itself
    if not isinstance(scale, nn.Conv2d) or not merged:
        return '' if isinstance(scale, nn.Conv2d) else why_called(scale)
    centred = geometry(scale) == geometry(depthwise(scale.in_channels, cast(tuple[int, int], scale.kernel_size)))
    return why_called(scale) or ('' if centred else 'its geometry was changed')


def _is_pair(large: nn.Module) -> bool:
    return type(large) is nn.Sequential and not is_intercepted(large) and len(large) == 2


def _kernel(scale: Scale) -> Kernel:
    return scale.kernel() if isinstance(scale, RepDWConv) else read(scale)


def _geometry(scale: Scale) -> nn.Conv2d:
    return scale.geometry if isinstance(scale, RepDWConv) else scale
