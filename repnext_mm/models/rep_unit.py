"""RepNeXtU's token mixers: depthwise convolutions of several sizes with norms, one depthwise 7x7 once norms fold."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repnext_mm.models.layers import called_one_by_one, depthwise, geometry
from repnext_mm.reparam import (
    Fusible,
    Kernel,
    add,
    concat,
    embed,
    exact,
    folds,
    is_plain,
    norm_after,
    read,
    read_norm,
    to_conv,
    why_called,
)

WINDOW = (7, 7)
EPS = 1e-6


class RepUnit(Fusible):
    """Branches that equal one depthwise 7x7 while their norms use running statistics, which then runs in their place.

    With batch statistics the branches have to run: what a norm subtracts depends on its branch's output.
    """

    __jit_unused_properties__ = ('norms',)

    if TYPE_CHECKING:  # TorchScript reads annotations
        dwconv1: nn.Conv2d  # 7x7

    @property
    @abstractmethod
    def norms(self) -> tuple[nn.Module, ...]:
        """Every norm."""

    @abstractmethod
    def kernel(self) -> Kernel:
        """The equivalent 7x7; see ``mergeable`` for when there is one."""

    @abstractmethod
    def branches(self, x: Tensor) -> Tensor:
        """The definition: one convolution per branch."""

    def mergeable(self) -> bool:
        """Whether calling the branches is the convolution with ``kernel()``."""
        if not all(folds(norm) for norm in self.norms):
            return False
        return all(is_plain(layer) for layer in self.children()) and self._built == self._geometries()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        if not torch.jit.is_scripting():  # scripts call every layer
            kernel = self.kernel() if not called_one_by_one(x) and self.mergeable() else None
            if kernel is not None:
                padding = (WINDOW[0] // 2, WINDOW[1] // 2)
                return F.conv2d(x, kernel.weight, kernel.bias, padding=padding, groups=len(kernel.weight))
        return self.branches(x)

    def fused(self, form: str) -> nn.Module:
        if not self.mergeable():
            return self
        kernel, weight = exact(self).kernel(), self.dwconv1.weight
        like = depthwise(len(kernel.weight), WINDOW).to(weight.device, weight.dtype)
        return to_conv(kernel, like=like.train(self.training))

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        if all(folds(norm) for norm in self.norms):
            for layer, built in zip(self.children(), self._built, strict=True):
                yield layer, why_called(layer) or ('' if geometry(layer) == built else 'its geometry was changed')

    def _is_built(self) -> None:
        self._built = self._geometries()  # what ``kernel`` counts on

    def _geometries(self) -> list[tuple[object, ...]]:
        return [geometry(layer) for layer in self.children()]


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
        self._is_built()

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

    if TYPE_CHECKING:  # TorchScript reads annotations
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
        self._is_built()

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
