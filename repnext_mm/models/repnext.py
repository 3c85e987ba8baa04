"""RepNeXt (arXiv 2406.16004): the table of variants, its convolutions and blocks, and the backbone, as the paper goes.

Every module states its deploy form (``fused``), and every linear one its equivalent kernel.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from repnext_mm.checkpoints import StateDict, recognize
from repnext_mm.checkpoints.published import weights_of
from repnext_mm.errors import UserError
from repnext_mm.models.base import StagedBackbone, recomputed, resolve
from repnext_mm.models.layers import (
    Config,
    OverwritingSequential,
    add_shortcut,
    build_activation,
    build_norm,
    called_one_by_one,
    depthwise,
    geometry,
    overwriting,
    stochastic_depth,
    why_not_dropped,
)
from repnext_mm.models.mixer_forms import FORMS, MERGED_FORMS, balanced, merged
from repnext_mm.models.registry import register
from repnext_mm.reparam import (
    Affine,
    Fusible,
    Kernel,
    add,
    affine_of,
    as_float64,
    chain,
    dilate,
    embed,
    kernel_of,
    norm_after,
    norm_before,
    split,
    to_conv,
)
from repnext_mm.reparam.fusible import fused_or_kept
from repnext_mm.reparam.kernel import convolve, is_affine
from repnext_mm.reparam.plain_layers import is_intercepted, is_plain, why_called, why_intercepted


@dataclass(frozen=True)
class Arch:
    """Widths and depths of the four stages.

    ``token_mixer`` is ``'multi'`` for the multi-branch mixers, or ``'single'`` for the E variants' one depthwise
    convolution (11x11 in blocks, 7x7 of stride 2 between stages).
    """

    embed_dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    mlp_ratio: float = 2
    token_mixer: str = 'multi'

    def __post_init__(self) -> None:
        for name, values in (('embed_dims', self.embed_dims), ('depths', self.depths)):
            if not isinstance(values, tuple) or not all(type(value) is int for value in values):
                raise UserError(f'{name} {values!r} must be whole numbers, one per stage')
        if len(self.embed_dims) != 4 or len(self.depths) != 4:
            raise UserError(f'embed_dims {self.embed_dims} and depths {self.depths} must have one entry per stage: 4')
        if any(a * 2 != b for a, b in zip(self.embed_dims, self.embed_dims[1:], strict=False)):
            raise UserError(f'embed_dims {self.embed_dims} must double from stage to stage')
        if self.embed_dims[0] <= 0 or self.embed_dims[0] % 4:
            raise UserError(f'embed_dims {self.embed_dims} must be positive multiples of 4: four scales share them')
        if min(self.depths) < 1:
            raise UserError(f'depths {self.depths} must be at least 1')
        if type(self.mlp_ratio) not in (int, float) or not 1 <= self.mlp_ratio * self.embed_dims[0] < math.inf:
            raise UserError(f'mlp_ratio {self.mlp_ratio!r} must be a positive number that leaves hidden channels')
        if self.token_mixer not in ('multi', 'single'):
            raise UserError(f"token_mixer {self.token_mixer!r} must be 'multi' or 'single'")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the stages, under the name that all networks share."""
        return self.embed_dims


ARCHITECTURES: dict[str, Arch] = {
    'm0': Arch((40, 80, 160, 320), (2, 2, 9, 1)),
    'm1': Arch((48, 96, 192, 384), (3, 3, 15, 2)),
    'm2': Arch((56, 112, 224, 448), (3, 3, 15, 2)),
    'm3': Arch((64, 128, 256, 512), (3, 3, 13, 2)),
    'm4': Arch((64, 128, 256, 512), (5, 5, 25, 4)),
    'm5': Arch((80, 160, 320, 640), (7, 7, 35, 2)),
    'm0e': Arch((40, 80, 160, 320), (2, 2, 9, 1), token_mixer='single'),
    'm1e': Arch((48, 96, 192, 384), (3, 3, 15, 2), token_mixer='single'),
    'm2e': Arch((56, 112, 224, 448), (3, 3, 15, 2), token_mixer='single'),
}
"""The published architectures (paper, table of variants)."""


def resolve_arch(arch: str | Mapping[str, Any] | Arch) -> Arch:
    """The architecture of a published name, or of a dict with the fields of ``Arch``.

    Raises:
        ValueError: an unknown name or field, or values that do not make a RepNeXt.
    """
    return resolve(arch, ARCHITECTURES)


class RepDWConv(Fusible):
    """Linear branches that equal one depthwise convolution at every moment, training included (paper, section 3).

    ``forward`` merges the branches' kernels, differentiably, and convolves once: output, gradients and optimizer
    steps are those of the branches. ``branches`` is the definition: the oracle of tests and benchmarks, and what runs
    where a branch is more than a convolution (a hook, an adapter, pruning, fake quantization) or is being recorded.
    """

    __jit_unused_properties__ = ('geometry',)

    @property
    @abstractmethod
    def geometry(self) -> nn.Conv2d:
        """The branch whose size, stride and padding the merged convolution has."""

    @abstractmethod
    def branch_kernels(self) -> dict[str, Kernel]:
        """The kernel of each branch, a chain as one, under names that give their sizes; each in its own window."""

    @abstractmethod
    def branches(self, x: Tensor) -> Tensor:
        """The sum over the branches, one convolution each."""

    def kernel(self) -> Kernel:
        """The equivalent kernel, a differentiable function of the branches' parameters; see ``mergeable``."""
        window = self.geometry.kernel_size
        return add(*(embed(kernel, window) for kernel in self.branch_kernels().values()))

    def mergeable(self) -> bool:
        """Whether calling the branches is the convolution with ``kernel()``."""
        branches = self._modules.values()
        return all(
            conv is not None and is_plain(conv) and geometry(conv) == built
            for conv, built in zip(branches, self._built, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H / stride, W / stride)``."""
        if not torch.jit.is_scripting():  # scripts call every layer
            kernel = self.kernel() if not called_one_by_one(x) and self.mergeable() else None
            if kernel is not None:
                return convolve(x, kernel, like=self.geometry)
        return self.branches(x)

    def fused(self, form: str) -> nn.Module:
        return to_conv(as_float64(self).kernel(), like=self.geometry) if self.mergeable() else self

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        for conv, built in zip(self.children(), self._built, strict=True):
            yield conv, why_called(conv) or ('' if geometry(conv) == built else 'its geometry was changed')

    def _is_built(self) -> None:
        self._built = [geometry(conv) for conv in self.children()]  # what ``kernel`` counts on


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


Scale = RepDWConv | nn.Conv2d  # as built; anything may have taken its place since


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

    def absorbed(self, norm: Affine) -> tuple[ChunkConv, Affine] | None:
        """``balanced`` for this mixer and the norm behind it; None where a scale has to be called."""
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
        return norm_after(kernel_of(self.conv), affine_of(self.norm))

    def mergeable(self) -> bool:
        """Whether calling both layers is the convolution with ``kernel()``."""
        return is_affine(self.norm) and is_plain(self.conv) and is_plain(self.norm)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, O, H / stride, W / stride)``."""
        if not torch.jit.is_scripting():  # scripts call every layer
            kernel = self.kernel() if not called_one_by_one(x) and self.mergeable() else None
            if kernel is not None:
                return convolve(x, kernel, like=self.conv)
        return self.norm(self.conv(x))

    def fused(self, form: str) -> nn.Module:
        return to_conv(as_float64(self).kernel(), like=self.conv) if self.mergeable() else self

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        if is_affine(self.norm):
            for layer in (self.conv, self.norm):
                yield layer, why_called(layer)


def channel_mixer(channels: int, *, mlp_ratio: float, norm_cfg: Config, act_cfg: Config) -> nn.Sequential:
    """1x1 to ``mlp_ratio`` times the channels, activation, 1x1 back."""
    hidden = int(channels * mlp_ratio)
    return nn.Sequential(
        ConvNorm(channels, hidden, 1, norm_cfg=norm_cfg),
        build_activation(act_cfg),
        ConvNorm(hidden, channels, 1, norm_cfg=norm_cfg),
    )


class MetaNeXtBlock(Fusible):
    """``x + channel_mixer(norm(token_mixer(x)))`` (paper, section 3).

    The norm folds *forward*, into the first 1x1 of the channel mixer (law ``norm_before``): the identity quarter of
    the token mixer has no convolution that could absorb it. Its place then holds the identity. Outside of training
    and graph capture, activation and shortcut of the fused block are written over the convolutions' outputs, unless a
    hook has seen those: the same numbers, with less memory to fetch.
    """

    forms = (*Fusible.forms, 'balanced')

    def __init__(
        self, token_mixer: nn.Module, norm: nn.Module, channel_mixer: nn.Sequential, drop_path: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.token_mixer = token_mixer
        self.norm = norm
        self.channel_mixer = channel_mixer
        self.drop_path = drop_path  # None once fused: in eval mode nothing is left of it

    @classmethod
    def train_form(
        cls,
        channels: int,
        token_mixer: nn.Module,
        *,
        mlp_ratio: float,
        norm_cfg: Config,
        act_cfg: Config,
        drop_path: float = 0.0,
    ) -> MetaNeXtBlock:
        """With every norm."""
        norm = build_norm(norm_cfg, channels)
        mixer = channel_mixer(channels, mlp_ratio=mlp_ratio, norm_cfg=norm_cfg, act_cfg=act_cfg)
        return cls(token_mixer, norm, mixer, stochastic_depth(drop_path))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        y = self.token_mixer(x)
        if torch.jit.is_scripting():  # noqa: SIM108 - scripts call every layer, and compile all of an expression
            y = self.channel_mixer(self.norm(y))
        else:
            y = self._normed_and_mixed(y)
        if self.drop_path is not None:
            return x + self.drop_path(y)
        if not torch.jit.is_scripting():  # scripts write over nothing
            return add_shortcut(y, x, made_by=self.channel_mixer)
        return x + y

    def fused(self, form: str) -> nn.Module:
        if why_not_dropped(self.drop_path) or not _is_mixer(self.channel_mixer):
            return self
        token_mixer, norm = fused_or_kept(self.token_mixer, form), self.norm
        mixer = _fused_mixer(self.channel_mixer, form)
        if form != 'keep_norms' and self._absorbs() and isinstance(mixer[0], nn.Conv2d):
            affine = affine_of(as_float64(self.norm))
            if form == 'balanced':
                token_mixer, affine = _absorbed(self.token_mixer, affine) or (token_mixer, affine)
            expand, *others = mixer
            kernel = norm_before(affine, _pointwise_kernel(as_float64(self.channel_mixer[0])))
            norm, mixer = (
                nn.Identity(),
                overwriting(nn.Sequential(to_conv(kernel, like=cast(nn.Conv2d, expand)), *others)),
            )
        if (token_mixer, norm, mixer) == (self.token_mixer, self.norm, self.channel_mixer):
            return self
        return MetaNeXtBlock(token_mixer, norm, mixer)

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        if self.drop_path is not None:
            yield self.drop_path, why_not_dropped(self.drop_path)
        if self.drop_path is not None or _has_to_fuse(self.norm, self.channel_mixer, form):
            yield from _norm_obstacles(self.norm)
            yield from _mixer_obstacles(self.channel_mixer)
            expand = _first(self.channel_mixer)
            if form != 'keep_norms' and isinstance(expand, nn.Conv2d):
                yield expand, why_called(expand) or ('' if geometry(expand) == _POINTWISE else 'it is not a 1x1')

    def _absorbs(self) -> bool:
        """Whether the first 1x1 may take in the norm before it: both are read then, not called."""
        if not (is_affine(self.norm) and is_plain(self.norm) and _is_mixer(self.channel_mixer)):
            return False
        expand = self.channel_mixer[0]
        if type(expand) is ConvNorm and not is_intercepted(expand):
            expand = expand.conv
        return is_plain(expand) and geometry(expand) == _POINTWISE

    def _normed_and_mixed(self, y: Tensor) -> Tensor:
        """``channel_mixer(norm(y))``; in train form with the norm and the first 1x1 as one where they may be read."""
        expand = _first(self.channel_mixer) if is_affine(self.norm) else None
        if not isinstance(expand, ConvNorm) or called_one_by_one(y) or not self._absorbs():
            return self.channel_mixer(self.norm(y))
        norm, (_, act, project) = affine_of(self.norm), self.channel_mixer
        if expand.mergeable():
            return project(act(convolve(y, norm_before(norm, expand.kernel()), like=expand.conv)))
        return project(act(expand.norm(convolve(y, norm_before(norm, kernel_of(expand.conv)), like=expand.conv))))


class Downsample(Fusible):
    """``y = norm(token_mixer(x))``, then ``y + channel_mixer(y)`` (paper, section 3).

    The norm folds *backward*, into the token mixer (law ``norm_after``): its output is the shortcut too. Its place then
    holds the identity, and the fused module writes over memory as a ``MetaNeXtBlock`` does.
    """

    def __init__(self, token_mixer: nn.Module, norm: nn.Module, channel_mixer: nn.Sequential) -> None:
        super().__init__()
        self.token_mixer = token_mixer
        self.norm = norm
        self.channel_mixer = channel_mixer

    @classmethod
    def train_form(
        cls, out_channels: int, token_mixer: nn.Module, *, mlp_ratio: float, norm_cfg: Config, act_cfg: Config
    ) -> Downsample:
        """With every norm; the token mixer is a ``CopyConv``, or the one convolution that the E variants have."""
        norm = build_norm(norm_cfg, out_channels)
        return cls(
            token_mixer, norm, channel_mixer(out_channels, mlp_ratio=mlp_ratio, norm_cfg=norm_cfg, act_cfg=act_cfg)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, 2C, H / 2, W / 2)``."""
        if not torch.jit.is_scripting():  # scripts call every layer, and write over nothing
            y = self._normed(x)
            return add_shortcut(self.channel_mixer(y), y, made_by=self.channel_mixer)
        y = self.norm(self.token_mixer(x))
        return y + self.channel_mixer(y)

    def fused(self, form: str) -> nn.Module:
        if not _is_mixer(self.channel_mixer):
            return self
        norm, mixer = self.norm, _fused_mixer(self.channel_mixer, form)
        if form != 'keep_norms' and self._absorbs():
            token_mixer, norm = _with_norm(self.token_mixer, affine_of(as_float64(self.norm))), nn.Identity()
            mixer = overwriting(mixer)
        else:
            token_mixer = fused_or_kept(self.token_mixer, form)
        if (token_mixer, norm, mixer) == (self.token_mixer, self.norm, self.channel_mixer):
            return self
        return Downsample(token_mixer, norm, mixer)

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        if _has_to_fuse(self.norm, self.channel_mixer, form):
            yield from _norm_obstacles(self.norm)
            if form != 'keep_norms':
                copies = type(self.token_mixer) is CopyConv
                yield self.token_mixer, why_intercepted(self.token_mixer) if copies else why_called(self.token_mixer)
            yield from _mixer_obstacles(self.channel_mixer)

    def _absorbs(self) -> bool:
        """Whether the token mixer may take in the norm behind it: both are read then, not called."""
        if not (is_affine(self.norm) and is_plain(self.norm)):
            return False
        if type(self.token_mixer) is CopyConv:
            return not is_intercepted(self.token_mixer) and all(map(_is_readable, _scales(self.token_mixer)))
        return isinstance(self.token_mixer, nn.Conv2d) and is_plain(self.token_mixer)

    def _normed(self, x: Tensor) -> Tensor:
        """The token mixer and the norm, as one where the norm of the train form may be folded on the fly."""
        in_train_form = is_affine(self.norm) and isinstance(_first(self.channel_mixer), ConvNorm)
        if not in_train_form or called_one_by_one(x) or not self._absorbs():
            return self.norm(self.token_mixer(x))
        scales = _scales(self.token_mixer)
        kernels = _normed_kernels(scales, affine_of(self.norm))
        outputs = [convolve(x, kernel, like=_geometry(scale)) for scale, kernel in zip(scales, kernels, strict=True)]
        return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


class Stem(Fusible):
    """Two 3x3 convolutions of stride 2 with an activation between them: stride 4."""

    def __init__(self, stem: nn.Sequential) -> None:
        super().__init__()
        self.stem = stem

    @classmethod
    def train_form(cls, in_channels: int, channels: int, *, norm_cfg: Config, act_cfg: Config) -> Stem:
        """With a norm after each convolution."""
        return cls(
            nn.Sequential(
                ConvNorm(in_channels, channels // 2, 3, stride=2, norm_cfg=norm_cfg),
                build_activation(act_cfg),
                ConvNorm(channels // 2, channels, 3, stride=2, norm_cfg=norm_cfg),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, I, H, W) -> (N, C, H / 4, W / 4)``."""
        return self.stem(x)

    def fused(self, form: str) -> nn.Module:
        if type(self.stem) is not nn.Sequential or is_intercepted(self.stem):
            return self
        layers = nn.Sequential(*(fused_or_kept(layer, form) for layer in self.stem))
        if all(new is old for new, old in zip(layers, self.stem, strict=True)):
            return self
        return Stem(layers if form == 'keep_norms' else overwriting(layers))

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        yield self.stem, why_intercepted(self.stem)


class Stage(nn.Module):
    """A downsampling (the identity in the first stage), then blocks.

    Args:
        downsample: the module that halves the size, or the identity.
        blocks: the blocks.
        with_cp: recompute the activations inside each block during the backward pass, to save memory.
    """

    def __init__(self, downsample: nn.Module, blocks: nn.Sequential, *, with_cp: bool = False) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = blocks
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, O, H / s, W / s)``, ``s`` the stride of the downsampling."""
        if not torch.jit.is_scripting():  # scripts recompute nothing
            recompute = self.with_cp and self.training and not called_one_by_one(x)
            if recompute:
                one_by_one = type(self.blocks) is nn.Sequential and not is_intercepted(self.blocks)
                for module in (self.downsample, *(self.blocks if one_by_one else [self.blocks])):
                    x = recomputed(module, x)
                return x
        return self.blocks(self.downsample(x))


@register()
class RepNeXt(StagedBackbone):
    """RepNeXt, a multi-scale CNN with structural re-parameterization.

    In train form, the branches of each token mixer are merged into one kernel on the fly, so that training costs
    little more than the fused network does; ``repnext_mm.reparam.fuse`` returns the deploy form.

    Args:
        arch: ``'m0'`` to ``'m5'``, ``'m0e'`` to ``'m2e'``, or a dict with ``embed_dims``, ``depths``, ``mlp_ratio``
            and ``token_mixer`` (``'multi'`` or ``'single'``).
        in_channels: channels of the image.
        out_indices: the stages to return, in ascending order.
        frozen_stages: ``-1`` freezes nothing, ``0`` the stem, ``k`` the stem and the first ``k`` stages.
        drop_path_rate: stochastic depth rate of the last block; it grows linearly from 0.
        norm_cfg: norm layers. BN and SyncBN fold; other norms are kept when fusing.
        act_cfg: activation layers.
        norm_eval: keep batch norms (SyncBN included) in eval mode while training. Their running statistics are then
            folded on the fly, which saves time and memory.
        with_cp: recompute activations in the backward pass to save memory.
        deploy: build the deploy form, for inference with a fused checkpoint.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE, prefix=None, ema=False, trust_pickle=False)`` loads a file
            strictly, heads and necks left out, and folds the norms that the authors' fused files keep; other entries
            are mmengine's.
        weights: for Python: the same, loaded at once. ``'distill_300e'`` is the published file of this arch; a path, an
            address and ``hf-hub:OWNER/NAME`` work too, see ``repnext_mm.checkpoints.local_file``.
        pretrained: not supported; present because stock mmseg configs set it.

    Raises:
        ValueError: an argument does not make a RepNeXt.
    """

    if TYPE_CHECKING:  # TorchScript reads annotations
        stem: nn.Module
        stages: nn.ModuleList

    def __init__(
        self,
        arch: str | Mapping[str, Any] | Arch = 'm4',
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        drop_path_rate: float = 0.0,
        norm_cfg: Mapping[str, Any] | None = None,
        act_cfg: Mapping[str, Any] | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        deploy: bool = False,
        init_cfg: dict | list[dict] | None = None,
        *,
        weights: str | None = None,
        pretrained: None = None,
    ) -> None:
        if weights is not None:
            if init_cfg is not None:
                raise UserError(f'weights={weights!r} and init_cfg={init_cfg} both say how to start: omit one')
            init_cfg = {'type': 'Pretrained', 'checkpoint': weights_of(arch, weights)}
        super().__init__(
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            drop_path_rate=drop_path_rate,
            norm_eval=norm_eval,
            switches={'with_cp': with_cp, 'deploy': deploy},
            init_cfg=init_cfg,
            pretrained=pretrained,
        )
        self.arch = resolve_arch(arch)
        norm_cfg = {'type': 'BN'} if norm_cfg is None else norm_cfg
        act_cfg = {'type': 'GELU'} if act_cfg is None else act_cfg
        self._assemble(partial(self._build, norm_cfg, act_cfg, drop_path_rate, with_cp), deploy=deploy)
        if weights is not None:
            self.load_pretrained(weights_of(arch, weights))

    def parts(self) -> list[list[nn.Module]]:
        return [[self.stem], *([stage] for stage in self.stages)]

    def levels(self, x: Tensor) -> list[Tensor]:
        found = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def place_of(self, name: str) -> tuple[int, int]:
        found = re.match(r'stages\.(\d+)\.(?:blocks\.(\d+))?', name)
        return (int(found[1]), int(found[2] or 0)) if found else (-1, 0)

    def form_of(self, state: StateDict) -> str:
        return recognize(state, {}).form

    def _build(
        self, norm_cfg: Mapping[str, Any], act_cfg: Mapping[str, Any], drop_path_rate: float, with_cp: bool
    ) -> None:
        arch = self.arch
        multi = arch.token_mixer == 'multi'
        common: dict[str, Any] = {'mlp_ratio': arch.mlp_ratio, 'norm_cfg': norm_cfg, 'act_cfg': act_cfg}
        rates = torch.linspace(0, drop_path_rate, sum(arch.depths), device='cpu').tolist()
        self.stem = Stem.train_form(self.in_channels, arch.embed_dims[0], norm_cfg=norm_cfg, act_cfg=act_cfg)
        stages = []
        for index, (channels, depth) in enumerate(zip(arch.embed_dims, arch.depths, strict=True)):
            downsample: nn.Module = nn.Identity()
            if index:
                half = channels // 2
                strided = CopyConv.train_form(half) if multi else depthwise(half, (7, 7), stride=(2, 2), expansion=2)
                downsample = Downsample.train_form(channels, strided, **common)
            blocks = []
            for _ in range(depth):
                mixer = ChunkConv.train_form(channels) if multi else depthwise(channels, (11, 11))
                blocks.append(MetaNeXtBlock.train_form(channels, mixer, drop_path=rates.pop(0), **common))
            stages.append(Stage(downsample, nn.Sequential(*blocks), with_cp=with_cp))
        self.stages = nn.ModuleList(stages)


_POINTWISE = geometry(nn.Conv2d(1, 1, 1, device='meta'))


def _is_mixer(mixer: nn.Module) -> bool:
    """Whether calling a channel mixer is calling three layers one after the other, as it was built."""
    plain = type(mixer) in (nn.Sequential, OverwritingSequential) and not is_intercepted(mixer)
    return plain and len(mixer._modules) == 3


def _first(mixer: nn.Module) -> nn.Module | None:
    return next(iter(mixer._modules.values()), None)


def _fused_mixer(mixer: nn.Sequential, form: str) -> nn.Sequential:
    expand, act, project = mixer
    layers = [fused_or_kept(expand, form), act, fused_or_kept(project, form)]
    return mixer if layers == [*mixer] else nn.Sequential(*layers)


def _pointwise_kernel(layer: nn.Module) -> Kernel:
    return layer.kernel() if isinstance(layer, ConvNorm) else kernel_of(cast(nn.Conv2d, layer))


def _has_to_fuse(norm: nn.Module, mixer: nn.Module, form: str) -> bool:
    return (form != 'keep_norms' and is_affine(norm)) or any(isinstance(layer, Fusible) for layer in mixer.children())


def _mixer_obstacles(mixer: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    yield mixer, why_intercepted(mixer) or ('' if _is_mixer(mixer) else 'it is not the chain of three that was built')
    for layer in mixer.children():
        known = isinstance(layer, Fusible | nn.Conv2d) or not any(True for _ in layer.parameters())
        yield layer, '' if known else why_called(layer)


def _norm_obstacles(norm: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    if is_affine(norm):
        yield norm, why_called(norm)


def _absorbed(mixer: nn.Module, norm: Affine) -> tuple[nn.Module, Affine] | None:
    """``balanced`` for the token mixer of a block and the norm behind it; None where the mixer has to be called."""
    if type(mixer) is ChunkConv:
        return mixer.absorbed(norm)
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


def _with_norm(mixer: nn.Module, norm: Affine) -> nn.Module:
    """The deploy form of a strided mixer with the norm of its output folded in, as read from an ``exact`` copy."""
    scales = _scales(mixer)
    kernels = _normed_kernels(map(as_float64, scales), norm)
    convs = [to_conv(kernel, like=_geometry(scale)) for scale, kernel in zip(scales, kernels, strict=True)]
    return CopyConv(*convs) if isinstance(mixer, CopyConv) else convs[0]


def _is_readable(scale: nn.Module) -> bool:
    if isinstance(scale, RepDWConv):
        return type(scale).forward is RepDWConv.forward and not is_intercepted(scale) and scale.mergeable()
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
