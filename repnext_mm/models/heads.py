"""The authors' classifier: two linear heads behind a norm each, whose mean counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn

from repnext_mm.reparam import (
    Fusible,
    Kernel,
    average,
    exact,
    folds,
    is_intercepted,
    is_plain,
    norm_before,
    read,
    read_norm,
    to_linear,
    why_called,
)


class NormLinear(Fusible):
    """Batch norm, then a linear layer (law ``norm_before``)."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(in_channels)
        self.linear = nn.Linear(in_channels, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def kernel(self) -> Kernel:
        """The equivalent linear layer; see ``mergeable`` for when there is one."""
        return norm_before(read_norm(self.norm), read(self.linear))

    def mergeable(self) -> bool:
        """Whether calling both layers is the linear layer of ``kernel()``."""
        return folds(self.norm) and is_plain(self.norm) and is_plain(self.linear)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C) -> (N, classes)``."""
        if isinstance(self.norm, nn.BatchNorm2d):  # timm's convert_splitbn_model makes such ones of all batch norms
            return self.linear(self.norm(x[:, :, None, None]).flatten(1))
        return self.linear(self.norm(x))

    def fused(self, form: str) -> nn.Module:
        return to_linear(exact(self).kernel(), like=self.linear) if self.mergeable() else self

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        if folds(self.norm):
            yield self.norm, why_called(self.norm)
            yield self.linear, why_called(self.linear)


class TwoHeads(Fusible):
    """What holds two linear heads, ``head`` and ``head_dist``, under the authors' names.

    Both exist, and are trained, without distillation too: the loss is then that of their mean. With distillation the
    first answers to the labels and the second to the teacher.
    """

    if TYPE_CHECKING:  # TorchScript reads annotations
        head: NormLinear
        head_dist: NormLinear

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(N, C) ->`` two times ``(N, classes)``: for the labels, and for a teacher."""
        return self.head(x), self.head_dist(x)

    def mean(self, x: Tensor) -> Tensor:
        """``(N, C) -> (N, classes)``: what the network says."""
        first, second = self.both(x)
        return (first + second) / 2

    def kernel(self) -> Kernel:
        """The linear layer that equals the mean (law ``average``); both heads must be mergeable."""
        return average(self.head.kernel(), self.head_dist.kernel())

    def merged(self) -> nn.Linear | None:
        """Both heads and their norms as one new linear layer; None while a norm uses batch statistics or is called."""
        heads = (self.head, self.head_dist)
        if any(type(head) is not NormLinear or is_intercepted(head) or not head.mergeable() for head in heads):
            return None
        return to_linear(average(*(exact(head).kernel() for head in heads)), like=self.head.linear)

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        for head in (self.head, self.head_dist):
            yield head, '' if isinstance(head, NormLinear) else why_called(head)


class TwoHeadLinear(TwoHeads):
    """The two heads as a module; a single linear layer once fused."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.head = NormLinear(in_channels, num_classes)
        self.head_dist = NormLinear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C) -> (N, classes)``."""
        return self.mean(x)

    def fused(self, form: str) -> nn.Module:
        return self.merged() or self
