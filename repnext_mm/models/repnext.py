"""RepNeXt (arXiv 2406.16004): the table of variants, token mixers, blocks, and the backbone, as the paper goes.

Every module states its deploy form (``fused``); those that equal one convolution run by it (``merged_conv``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
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
from repnext_mm.models.merged_conv import ConvNorm
from repnext_mm.models.registry import register
from repnext_mm.models.token_mixers import (
    ChunkConv,
    CopyConv,
    run_with_norm,
    takes_norm,
    why_without_norm,
    with_balanced_norm,
    with_norm,
)
from repnext_mm.reparam import Fusible, Kernel, affine_of, as_float64, kernel_of, norm_before, to_conv
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
                token_mixer, affine = with_balanced_norm(self.token_mixer, affine) or (token_mixer, affine)
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
            token_mixer, norm = with_norm(self.token_mixer, affine_of(as_float64(self.norm))), nn.Identity()
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
                yield self.token_mixer, why_without_norm(self.token_mixer)
            yield from _mixer_obstacles(self.channel_mixer)

    def _absorbs(self) -> bool:
        """Whether the token mixer may take in the norm after it: both are read then, not called."""
        return is_affine(self.norm) and is_plain(self.norm) and takes_norm(self.token_mixer)

    def _normed(self, x: Tensor) -> Tensor:
        """The token mixer and the norm, as one where the norm of the train form may be folded on the fly."""
        in_train_form = is_affine(self.norm) and isinstance(_first(self.channel_mixer), ConvNorm)
        if not in_train_form or called_one_by_one(x) or not self._absorbs():
            return self.norm(self.token_mixer(x))
        return run_with_norm(self.token_mixer, affine_of(self.norm), x)


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
