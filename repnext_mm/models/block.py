"""RepNeXt's two building blocks, in train form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repnext_mm.models.conv_norm import ConvNorm
from repnext_mm.models.deploy_block import FusedBlock, FusedDownsample, NormedBlock, NormedDownsample
from repnext_mm.models.layers import Config, build_activation, build_norm, called_one_by_one
from repnext_mm.models.token_mixer import StridedMixer, absorb_norm, is_readable, mix_and_norm, why_unreadable
from repnext_mm.reparam import (
    Fusible,
    convolve,
    exact,
    folds,
    fused_or_kept,
    is_intercepted,
    is_plain,
    norm_before,
    read,
    read_norm,
    to_conv,
    why_called,
    why_intercepted,
)


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
    the token mixer has no convolution that could absorb it.
    """

    def __init__(
        self,
        channels: int,
        token_mixer: nn.Module,
        *,
        mlp_ratio: float,
        norm_cfg: Config,
        act_cfg: Config,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.token_mixer = token_mixer
        self.norm = build_norm(norm_cfg, channels)
        self.channel_mixer = channel_mixer(channels, mlp_ratio=mlp_ratio, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.drop_path = stochastic_depth(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        y = self.token_mixer(x)
        if not torch.jit.is_scripting():  # scripts call every layer
            expanded = self._expanded(y)
            if expanded is not None:
                _, act, project = self.channel_mixer
                return x + self.drop_path(project(act(expanded)))
        return x + self.drop_path(self.channel_mixer(self.norm(y)))

    def fused(self, form: str) -> nn.Module:
        if why_not_dropped(self.drop_path) or not _is_mixer(self.channel_mixer):
            return self
        token_mixer = fused_or_kept(self.token_mixer, form)
        expand, act, project = cast(tuple[ConvNorm, nn.Module, nn.Module], self.channel_mixer)
        if form != 'keep_norms' and self._absorbs() and expand.mergeable():
            kernel = norm_before(read_norm(exact(self.norm)), exact(expand).kernel())
            first = to_conv(kernel, like=expand.conv)
            return FusedBlock(token_mixer, nn.Sequential(first, act, fused_or_kept(project, form)))
        return NormedBlock(token_mixer, self.norm, _fused_mixer(self.channel_mixer, form))

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        yield self.drop_path, why_not_dropped(self.drop_path)
        yield from _norm_obstacles(self.norm)
        yield from _mixer_obstacles(self.channel_mixer)

    def _absorbs(self) -> bool:
        """Whether the first 1x1 may take in the norm before it: both are read then, not called."""
        if not (folds(self.norm) and is_plain(self.norm) and _is_mixer(self.channel_mixer)):
            return False
        expand = self.channel_mixer[0]
        return type(expand) is ConvNorm and not is_intercepted(expand) and is_plain(expand.conv)

    def _expanded(self, y: Tensor) -> Tensor | None:
        """The norm and the first 1x1 as one; None where they are called."""
        if called_one_by_one(y) or not self._absorbs():
            return None
        norm, expand = read_norm(self.norm), cast(ConvNorm, self.channel_mixer[0])
        if expand.mergeable():
            return convolve(y, norm_before(norm, expand.kernel()), like=expand.conv)
        return expand.norm(convolve(y, norm_before(norm, read(expand.conv)), like=expand.conv))


class Downsample(Fusible):
    """``y = norm(token_mixer(x))``, then ``y + channel_mixer(y)`` (paper, section 3).

    The norm folds *backward*, into the token mixer (law ``norm_after``): its output is the shortcut too.
    """

    def __init__(
        self, out_channels: int, token_mixer: StridedMixer, *, mlp_ratio: float, norm_cfg: Config, act_cfg: Config
    ) -> None:
        super().__init__()
        self.token_mixer = token_mixer
        self.norm = build_norm(norm_cfg, out_channels)
        self.channel_mixer = channel_mixer(out_channels, mlp_ratio=mlp_ratio, norm_cfg=norm_cfg, act_cfg=act_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, 2C, H / 2, W / 2)``."""
        normed = self._normed(x) if not torch.jit.is_scripting() else None  # scripts call every layer
        if normed is None:
            normed = self.norm(self.token_mixer(x))
        return normed + self.channel_mixer(normed)

    def fused(self, form: str) -> nn.Module:
        if not _is_mixer(self.channel_mixer):
            return self
        mixer = _fused_mixer(self.channel_mixer, form)
        if form == 'keep_norms' or not self._absorbs():
            return NormedDownsample(fused_or_kept(self.token_mixer, form), self.norm, mixer)
        return FusedDownsample(absorb_norm(self.token_mixer, read_norm(exact(self.norm))), mixer)

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        yield from _norm_obstacles(self.norm)
        if form != 'keep_norms':
            yield self.token_mixer, why_unreadable(self.token_mixer)
        yield from _mixer_obstacles(self.channel_mixer)

    def _absorbs(self) -> bool:
        """Whether the token mixer may take in the norm behind it: both are read then, not called."""
        return folds(self.norm) and is_plain(self.norm) and is_readable(self.token_mixer)

    def _normed(self, x: Tensor) -> Tensor | None:
        """The token mixer and the norm as one; None where they are called."""
        if called_one_by_one(x) or not self._absorbs():
            return None
        return mix_and_norm(x, self.token_mixer, read_norm(self.norm))


class FrozenStatistics:
    """Let training-mode norms normalise by the batch without updating their running statistics; enter it repeatedly.

    Recomputing a block for gradient checkpointing would otherwise update them twice per step, and once more with every
    further backward pass.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._before: list[tuple[_BatchNorm, float | None, Tensor | None]] = []

    def __enter__(self) -> None:
        norms = [m for m in self._module.modules() if isinstance(m, _BatchNorm)]
        self._before = [
            (norm, norm.momentum, None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone())
            for norm in norms
            if norm.training and norm.track_running_stats
        ]
        for norm, *_ in self._before:
            # changes no value and, unlike leaving the statistics out, no tensor that backward expects
            norm.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        for norm, momentum, count in self._before:
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)


def stochastic_depth(rate: float) -> nn.Module:
    """What drops a residual branch per sample; the identity at rate 0, which needs no torchvision."""
    if not rate:
        return nn.Identity()
    from torchvision.ops import StochasticDepth

    return StochasticDepth(rate, mode='row')


def why_not_dropped(drop_path: nn.Module) -> str:
    """Why fusing may not leave out what stands where a branch is dropped in training, for people; empty where it may.

    Of stochastic depth, nothing is left in eval mode.
    """
    if type(drop_path) is nn.Identity or type(drop_path).__name__ in ('StochasticDepth', 'DropPath'):
        return why_intercepted(drop_path)
    return f'its class {type(drop_path).__name__} is not stochastic depth'


def _is_mixer(mixer: nn.Module) -> bool:
    """Whether calling a channel mixer is calling three layers one after the other, as it was built."""
    return type(mixer) is nn.Sequential and len(mixer) == 3 and not is_intercepted(mixer)


def _fused_mixer(mixer: nn.Module, form: str) -> nn.Sequential:
    expand, act, project = cast(nn.Sequential, mixer)
    return nn.Sequential(fused_or_kept(expand, form), act, fused_or_kept(project, form))


def _mixer_obstacles(mixer: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    yield mixer, why_intercepted(mixer) or ('' if _is_mixer(mixer) else 'it is not the chain of three that was built')
    for layer in mixer.children():
        known = isinstance(layer, Fusible | nn.Conv2d) or not any(True for _ in layer.parameters())
        yield layer, '' if known else why_called(layer)


def _norm_obstacles(norm: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    if folds(norm):
        yield norm, why_called(norm)
