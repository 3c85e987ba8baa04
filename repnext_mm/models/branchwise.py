"""The network as its paper draws it: a convolution per branch and every norm apart, nothing merged on the fly."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from repnext_mm.models.merged_conv import ConvNorm, MergedConv
from repnext_mm.models.repnext import Downsample, MetaNeXtBlock
from repnext_mm.reparam.surgery import replaced


def branch_by_branch(model: nn.Module) -> nn.Module:
    """The same model without any merging: what online merging is compared with, and how the authors run it.

    Parameters, buffers and norms are those of ``model``: gradients, optimizer steps and running statistics land in
    the same tensors, state-dict keys stay, and ``train()`` or ``eval()`` of either sets the norms of both.
    A model that merges nothing is returned as it is.
    """

    def apart(name: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, MergedConv):
            return _Branches(module)
        if isinstance(module, MetaNeXtBlock | Downsample) and _in_train_form(module):
            return _Block(module) if isinstance(module, MetaNeXtBlock) else _Downsample(module)
        return None

    return replaced(model, apart)


class _Apart(nn.Module):
    """The children of a module under their names, each of them apart."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        for name, child in source.named_children():
            self.add_module(name, branch_by_branch(child))
        self.training = source.training

    def run(self, name: str, x: Tensor) -> Tensor:
        return cast(nn.Module, self._modules[name])(x)


class _Branches(_Apart):
    def __init__(self, source: MergedConv) -> None:
        super().__init__(source)
        self.branches = source.branches  # the definition, a method: its convolutions are this module's children

    def forward(self, x: Tensor) -> Tensor:
        return self.branches(x)


class _Block(_Apart):
    def forward(self, x: Tensor) -> Tensor:
        mixed = self.run('channel_mixer', self.run('norm', self.run('token_mixer', x)))
        return x + (self.run('drop_path', mixed) if 'drop_path' in self._modules else mixed)


class _Downsample(_Apart):
    def forward(self, x: Tensor) -> Tensor:
        y = self.run('norm', self.run('token_mixer', x))
        return y + self.run('channel_mixer', y)


def _in_train_form(block: MetaNeXtBlock | Downsample) -> bool:
    return any(isinstance(layer, ConvNorm) for layer in block.channel_mixer.children())
