"""RepNeXtU's token mixers: depthwise convolutions of several sizes with norms, one depthwise 7x7 once norms fold."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repnext_mm.reparam import Fusible, Kernel, add, concat, embed, exact, folds, norm_after, read, read_norm, to_conv
from .layers import depthwise

WINDOW = (7, 7)
EPS = 1e-6


class RepUnit(Fusible):
    """Branches that equal one depthwise 7x7 while their norms use running statistics, which then runs in their place.

    With batch statistics the branches have to run: what a norm subtracts depends on its branch's output.
    """

    dwconv1: nn.Conv2d  # 7x7

    @property
    @abstractmethod
    def norms(self) -> tuple[nn.Module, ...]:
        """Every norm."""

    @abstractmethod
    def kernel(self) -> Kernel:
        """The equivalent 7x7; the norms must use running statistics."""

    @abstractmethod
    def branches(self, x: Tensor) -> Tensor:
        """The definition: one convolution per branch."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        if not all(folds(norm) for norm in self.norms):
            return self.branches(x)
        weight, bias = self.kernel()
        return F.conv2d(x, weight, bias, padding=(WINDOW[0] // 2, WINDOW[1] // 2), groups=len(weight))

    def fused(self, form: str) -> nn.Module:
        if not all(folds(norm) for norm in self.norms):
            return self
        kernel, weight = exact(self).kernel(), self.dwconv1.weight
        geometry = depthwise(len(kernel.weight), WINDOW).to(weight.device, weight.dtype)
        return to_conv(kernel, like=geometry.train(self.training))


class RepUnit1(RepUnit):
    """A third of the channels for each size, 7x7, 5x5 and 3x3, and one norm of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 3:
            raise ValueError(
                f"{channels} channels cannot be cut into three sizes: unit 'u1' needs dims divisible by 3, "
                "choose others, or unit 'u2' or 'u3'"
            )
        self.dwconv1 = depthwise(channels // 3, WINDOW, bias=False)
        self.dwconv2 = depthwise(channels // 3, (5, 5), bias=False)
        self.dwconv3 = depthwise(channels // 3, (3, 3), bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=EPS)

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        return (self.norm,)

    def kernel(self) -> Kernel:
        sizes = (embed(read(conv), WINDOW) for conv in (self.dwconv1, self.dwconv2, self.dwconv3))
        return norm_after(concat(*sizes), read_norm(self.norm))

    def branches(self, x: Tensor) -> Tensor:
        first, second, third = x.chunk(3, dim=1)
        return self.norm(torch.cat([self.dwconv1(first), self.dwconv2(second), self.dwconv3(third)], dim=1))


class SummedUnit(RepUnit):
    """Every channel in three sizes, each with a norm, summed."""

    sizes: tuple[tuple[int, int], ...]  # of the second and the third branch

    def __init__(self, channels: int) -> None:
        super().__init__()
        second, third = self.sizes
        self.dwconv1 = depthwise(channels, WINDOW, bias=False)
        self.dwconv2 = depthwise(channels, second, bias=False)
        self.dwconv3 = depthwise(channels, third, bias=False)
        self.norm1 = nn.BatchNorm2d(channels, eps=EPS)
        self.norm2 = nn.BatchNorm2d(channels, eps=EPS)
        self.norm3 = nn.BatchNorm2d(channels, eps=EPS)

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        return self.norm1, self.norm2, self.norm3

    def kernel(self) -> Kernel:
        branches = zip((self.dwconv1, self.dwconv2, self.dwconv3), self.norms, strict=True)
        return add(*(embed(norm_after(read(conv), read_norm(norm)), WINDOW) for conv, norm in branches))

    def branches(self, x: Tensor) -> Tensor:
        return self.norm1(self.dwconv1(x)) + self.norm2(self.dwconv2(x)) + self.norm3(self.dwconv3(x))


class RepUnit2(SummedUnit):
    """7x7, 5x5 and 3x3."""

    sizes = ((5, 5), (3, 3))


class RepUnit3(SummedUnit):
    """7x7, 1x5 and 3x1."""

    sizes = ((1, 5), (3, 1))


REP_UNITS: dict[str, type[RepUnit1 | SummedUnit]] = {'u1': RepUnit1, 'u2': RepUnit2, 'u3': RepUnit3}
