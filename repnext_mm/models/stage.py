"""RepNeXt's stem and stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from repnext_mm.models.block import FrozenStatistics
from repnext_mm.models.conv_norm import ConvNorm
from repnext_mm.models.layers import Config, build_activation, called_one_by_one, overwriting
from repnext_mm.reparam import Fusible, fused_or_kept, is_intercepted, why_intercepted


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


def recomputed(module: nn.Module, x: Tensor) -> Tensor:
    """A module's output, whose activations the backward pass computes again; norms count the batch once."""
    return checkpoint(module, x, use_reentrant=False, context_fn=lambda: (nullcontext(), FrozenStatistics(module)))
