"""Re-parameterized depthwise convolutions: several linear branches that are one convolution (paper, section 3)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from repnext_mm.models.layers import called_one_by_one, depthwise, geometry
from repnext_mm.reparam import (
    Fusible,
    Kernel,
    add,
    chain,
    convolve,
    dilate,
    embed,
    exact,
    is_plain,
    read,
    to_conv,
    why_called,
)


class RepDWConv(Fusible):
    """Linear branches that equal one depthwise convolution at every moment, training included.

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
    def kernel(self) -> Kernel:
        """The equivalent kernel, a differentiable function of the branches' parameters; see ``mergeable``."""

    @abstractmethod
    def branches(self, x: Tensor) -> Tensor:
        """The sum over the branches, one convolution each."""

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
        return to_conv(exact(self).kernel(), like=self.geometry) if self.mergeable() else self

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

    def kernel(self) -> Kernel:
        row, col = read(self.conv_3_w), read(self.conv_3_h)
        cross = add(embed(row, (3, 3)), embed(col, (3, 3))) if self.parallel else chain(row, col)
        return add(read(self.conv_3_3), cross, dilate(read(self.conv_2_2), 2))

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

    def kernel(self) -> Kernel:
        return add(
            read(self.conv_7_7),
            embed(read(self.conv_5_3), (7, 7)),
            embed(read(self.conv_3_5), (7, 7)),
            chain(read(self.conv_7_w), read(self.conv_7_h)),
            embed(chain(read(self.conv_5_w), read(self.conv_5_h)), (7, 7)),
        )

    def branches(self, x: Tensor) -> Tensor:
        return (
            self.conv_7_7(x)
            + self.conv_5_3(x)
            + self.conv_3_5(x)
            + self.conv_7_h(self.conv_7_w(x))
            + self.conv_5_h(self.conv_5_w(x))
        )
