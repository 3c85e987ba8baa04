"""RepNeXt's two building blocks, in train form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repnext_mm.reparam import Fusible, convolve, exact, folds, norm_before, read, read_norm, to_conv
from .conv_norm import ConvNorm
from .deploy_block import FusedBlock, FusedDownsample, NormedBlock, NormedDownsample
from .layers import Config, build_activation, build_norm
from .token_mixer import CopyConv, StridedMixer, absorb_norm, mix_and_norm


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
        self, channels: int, token_mixer: nn.Module, *, mlp_ratio: float, norm_cfg: Config, act_cfg: Config,
        drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.token_mixer = token_mixer
        self.norm = build_norm(norm_cfg, channels)
        self.channel_mixer = channel_mixer(channels, mlp_ratio=mlp_ratio, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.drop_path = stochastic_depth(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        expand, act, project = cast(tuple[ConvNorm, nn.Module, ConvNorm], self.channel_mixer)
        y = self.token_mixer(x)
        if folds(self.norm) and folds(expand.norm):
            y = convolve(y, norm_before(read_norm(self.norm), expand.kernel()), like=expand.conv)
        elif folds(self.norm):
            y = expand.norm(convolve(y, norm_before(read_norm(self.norm), read(expand.conv)), like=expand.conv))
        else:
            y = expand(self.norm(y))
        return x + self.drop_path(project(act(y)))

    def fused(self, form: str) -> nn.Module:
        token_mixer = self.token_mixer.fused(form) if isinstance(self.token_mixer, Fusible) else self.token_mixer
        expand, act, project = cast(tuple[ConvNorm, nn.Module, ConvNorm], self.channel_mixer)
        if form == 'keep_norms' or not (folds(self.norm) and folds(expand.norm)):
            return NormedBlock(token_mixer, self.norm, nn.Sequential(expand.fused(form), act, project.fused(form)))
        kernel = norm_before(read_norm(exact(self.norm)), exact(expand).kernel())
        return FusedBlock(token_mixer, nn.Sequential(to_conv(kernel, like=expand.conv), act, project.fused(form)))


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
        if folds(self.norm):
            y = mix_and_norm(x, self.token_mixer, read_norm(self.norm))
        else:
            y = self.norm(self.token_mixer(x))
        return y + self.channel_mixer(y)

    def fused(self, form: str) -> nn.Module:
        expand, act, project = cast(tuple[ConvNorm, nn.Module, ConvNorm], self.channel_mixer)
        mixer = nn.Sequential(expand.fused(form), act, project.fused(form))
        if form == 'keep_norms' or not folds(self.norm):
            token_mixer = self.token_mixer.fused(form) if isinstance(self.token_mixer, CopyConv) else self.token_mixer
            return NormedDownsample(token_mixer, self.norm, mixer)
        return FusedDownsample(absorb_norm(self.token_mixer, read_norm(exact(self.norm))), mixer)


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Let training-mode norms normalise by the batch without updating their running statistics.

    Recomputing a block for gradient checkpointing would otherwise update them twice per step.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    # a momentum of 0 changes no value and, unlike leaving the statistics out, no tensor that backward expects
    counts = [(norm.num_batches_tracked, cast(Tensor, norm.num_batches_tracked).clone()) for norm in norms]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, (count, before) in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            cast(Tensor, count).copy_(before)


def stochastic_depth(rate: float) -> nn.Module:
    """What drops a residual branch per sample; the identity at rate 0, which needs no torchvision."""
    if not rate:
        return nn.Identity()
    from torchvision.ops import StochasticDepth

    return StochasticDepth(rate, mode='row')
