"""Laws about groups: a grouped convolution as one with fewer groups, and grouped convolutions of one input stacked."""

from __future__ import annotations

import torch
from torch import Tensor

from repnext_mm.reparam.kernel import Kernel
from repnext_mm.reparam.laws import concat


def ungroup(kernel: Kernel, groups: int, *, into: int = 1) -> Kernel:
    """A grouped convolution as one with fewer groups: zeros where an output does not read an input.

    Args:
        kernel: ``(O, I / groups, ...)``.
        groups: of ``kernel``.
        into: the groups that are left, a divisor of ``groups``; 1 is a dense convolution.
    """
    outputs, inputs, *window = kernel.weight.shape
    if into < 1 or groups % into or outputs % groups:
        raise ValueError(
            f'cannot write {outputs} outputs in {groups} groups with {into}: {into} must divide {groups}, '
            f'and {groups} the outputs'
        )
    united = groups // into
    own = torch.eye(united, dtype=kernel.weight.dtype, device=kernel.weight.device)
    blocks = kernel.weight.reshape(into, united, outputs // groups, 1, inputs, *window)
    weight = blocks * own.reshape(1, united, 1, united, *[1] * (1 + len(window)))
    return Kernel(weight.reshape(outputs, united * inputs, *window), kernel.bias)


def concat_grouped(*kernels: Kernel, groups: int) -> tuple[Kernel, Tensor]:
    """Parallel convolutions of one input, all with the same number of groups, as one with that many.

    A grouped convolution returns its outputs group by group, so that those of the parallel ones come interleaved.

    Returns:
        The kernel, and the order of its outputs: ``y[:, order]`` is ``torch.cat`` of the parallel outputs.
    """
    if any(len(kernel.weight) % groups for kernel in kernels):
        outputs = [len(kernel.weight) for kernel in kernels]
        raise ValueError(f'{outputs} outputs do not divide into {groups} groups')
    stacked = concat(*kernels)
    device = stacked.weight.device
    rows = torch.arange(len(stacked.weight), device=device).split([len(kernel.weight) for kernel in kernels])
    interleaved = torch.cat([part.reshape(groups, -1) for part in rows], 1).flatten()
    bias = None if stacked.bias is None else stacked.bias[interleaved]
    return Kernel(stacked.weight[interleaved], bias), interleaved.argsort()
