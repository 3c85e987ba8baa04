"""What equals one convolution, and runs by it: merging on the fly, in training too (docs/reparameterization.md)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from repnext_mm.models.layers import Config, as_built, build_norm, called_one_by_one, why_not_as_built
from repnext_mm.reparam import Fusible, Kernel, affine_of, as_float64, kernel_of, norm_after, to_conv
from repnext_mm.reparam.kernel import convolve, is_affine
from repnext_mm.reparam.plain_layers import is_plain, why_called, why_not_as_written


class MergedConv(Fusible):
    """Layers that equal one convolution while ``mergeable``.

    ``forward`` merges their kernels, differentiably, and convolves once: output, gradients and optimizer steps are
    those of the layers. ``branches`` is the definition: the oracle of tests and benchmarks, and what runs where a layer
    is more than its weights (a hook, an adapter, pruning, fake quantization), uses batch statistics, or is being
    recorded.
    """

    __jit_unused_properties__ = cast(tuple[str, ...], ('geometry',))  # not annotated, see ``Fusible``

    @property
    @abstractmethod
    def geometry(self) -> nn.Conv2d:
        """The layer whose stride, padding and groups the merged convolution has."""

    @abstractmethod
    def kernel(self) -> Kernel:
        """The equivalent kernel, a differentiable function of the layers' parameters; see ``mergeable``."""

    @abstractmethod
    def mergeable(self) -> bool:
        """Whether calling the layers is the convolution with ``kernel()``."""

    @abstractmethod
    def branches(self, x: Tensor) -> Tensor:
        """The definition, one call per layer."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, O, H / stride, W / stride)``."""
        if not torch.jit.is_scripting():  # scripts call every layer
            merge = not called_one_by_one(x) and not why_not_as_written(self) and self.mergeable()
            kernel = self.kernel() if merge else None
            if kernel is not None:
                return self.convolved(x, kernel)
        return self.branches(x)

    def convolved(self, x: Tensor, kernel: Kernel) -> Tensor:
        """The convolution with a kernel in the place of the layers."""
        return convolve(x, kernel, like=self.geometry)

    def fused(self, form: str) -> nn.Module:
        return to_conv(as_float64(self).kernel(), like=self.geometry) if self.mergeable() else self


class MergedBranches(MergedConv):
    """Branches whose sizes differ, so that ``kernel`` counts on the geometries that they were built with."""

    __jit_unused_properties__ = (*MergedConv.__jit_unused_properties__, 'norms')

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        """Every norm."""
        return ()

    def mergeable(self) -> bool:
        layers = self._modules.values()
        return (
            len(layers) == len(self._built)
            and all(map(is_affine, self.norms))
            and all(
                layer is not None and is_plain(layer) and not why_not_as_built(layer, built)
                for layer, built in zip(layers, self._built, strict=True)
            )
        )

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        layers = list(self._modules.values())
        for added in layers[len(self._built) :]:
            if added is not None:
                yield added, 'it was added'
        if all(map(is_affine, self.norms)):
            for layer, built in zip(layers, self._built, strict=False):
                if layer is None:
                    yield self, 'a branch was removed'
                else:
                    yield layer, why_called(layer) or why_not_as_built(layer, built)

    def _is_built(self) -> None:
        self._built = [as_built(layer) for layer in self.children()]


class ConvNorm(MergedConv):
    """Convolution without bias, then norm (law ``norm_after``); folded on the fly while the norm is in eval mode."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, norm_cfg: Config, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.norm = build_norm(norm_cfg, out_channels)

    @property
    def geometry(self) -> nn.Conv2d:
        return self.conv

    def kernel(self) -> Kernel:
        return norm_after(kernel_of(self.conv), affine_of(self.norm))

    def mergeable(self) -> bool:
        return is_affine(self.norm) and is_plain(self.conv) and is_plain(self.norm)

    def branches(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        if is_affine(self.norm):
            for layer in (self.conv, self.norm):
                yield layer, why_called(layer)
