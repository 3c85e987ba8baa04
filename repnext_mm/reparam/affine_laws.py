"""Laws about norms of transposed convolutions, of sums and of stacked outputs; see ``laws`` for the others."""

from __future__ import annotations

import torch

from repnext_mm.reparam.kernel import Affine, Kernel


def norm_after_transposed(kernel: Kernel, norm: Affine, *, groups: int = 1) -> Kernel:
    """A transposed convolution and the norm of its output as one; always exact.

    Args:
        kernel: ``(I, O / groups, ...)``, as transposed convolutions have it.
        norm: of O channels.
        groups: of the convolution.

    Raises:
        ValueError: the norm has another number of channels.
    """
    inputs, outputs = kernel.weight.shape[:2]
    if len(norm.scale) != outputs * groups or inputs % groups:
        raise ValueError(
            f'a norm of {len(norm.scale)} channels cannot follow a transposed convolution of shape '
            f'{tuple(kernel.weight.shape)} in {groups} groups'
        )
    # every input channel feeds the outputs of its group only
    rows = norm.scale.reshape(groups, 1, outputs).expand(-1, inputs // groups, -1).reshape(inputs, outputs)
    weight = kernel.weight * rows.reshape(inputs, outputs, *[1] * (kernel.weight.dim() - 2))
    return Kernel(weight, norm.shift if kernel.bias is None else kernel.bias * norm.scale + norm.shift)


def norm_of_sum(norm: Affine, count: int) -> tuple[Affine, ...]:
    """The norm of a sum, as one norm per summand: all are scaled, the first is shifted too; always exact."""
    if count < 1:
        raise ValueError(f'a sum of {count} summands has no norm: it needs at least one')
    unmoved = Affine(norm.scale, torch.zeros_like(norm.shift))
    return (norm, *[unmoved] * (count - 1))
