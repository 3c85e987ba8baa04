"""The laws of re-parameterization: pure, differentiable functions from kernels to kernels.

Every law is exact under the condition that its docstring states. Where the condition can be seen from the kernels,
the law raises a ``ValueError``; geometry (padding, stride, who reads an output) is not part of a kernel and remains
the caller's duty.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from repnext_mm.reparam.kernel import Affine, Kernel


def embed(kernel: Kernel, size: Sequence[int]) -> Kernel:
    """Centre a kernel in a larger zero window: same output once the padding grows alike."""
    window = kernel.weight.shape[2:]
    margins = [new - old for new, old in zip(size, window, strict=False)]
    if len(size) != len(window) or any(margin < 0 or margin % 2 for margin in margins):
        raise ValueError(
            f'cannot centre a {tuple(window)} kernel in {tuple(size)}: margins must be even and >= 0, one per axis'
        )
    pads = [margin // 2 for margin in reversed(margins) for _ in range(2)]  # F.pad lists the last axis first
    return Kernel(F.pad(kernel.weight, pads), kernel.bias)


def dilate(kernel: Kernel, step: int) -> Kernel:
    """Write a dilated kernel as a dense one: 2x2 with dilation 2 becomes the four corners of a 3x3."""
    if step < 1:
        raise ValueError(f'dilation {step} is no dilation: it must be >= 1')
    outputs, inputs, *window = kernel.weight.shape
    # not written into slices, which exporters do not know: zeros behind every weight, then the last ones cut off
    spread = kernel.weight.reshape(outputs, inputs, *(n for length in window for n in (length, 1)))
    spread = F.pad(spread, [0, step - 1, 0, 0] * len(window))
    dense = spread.reshape(outputs, inputs, *(length * step for length in window))
    return Kernel(F.pad(dense, [0, 1 - step] * len(window)), kernel.bias)


def chain(row: Kernel, col: Kernel) -> Kernel:
    """Depthwise 1xk, then depthwise kx1, as one kxk.

    Exact when the first has no bias (its bias would meet the second's zero padding: an error along the border) and
    when each strides along its own axis only.
    """
    if row.bias is not None:
        raise ValueError('cannot chain after a biased convolution: its bias meets the zero padding of the next one')
    rows, cols = row.weight.shape, col.weight.shape
    if rows[:3] != (rows[0], 1, 1) or cols[1] != 1 or cols[3] != 1 or rows[0] != cols[0]:
        raise ValueError(
            f'cannot chain {tuple(rows)} and {tuple(cols)}: need depthwise (C, 1, 1, k), then (C, 1, k, 1)'
        )
    return Kernel(col.weight * row.weight, col.bias)  # outer product; elementwise, so autocast leaves it alone


def chain_biased(row: Kernel, col: Kernel) -> tuple[Kernel, Kernel]:
    """Depthwise 1xk with a bias, then depthwise kx1, as one kxk and what it lacks along the border.

    The first bias meets the second's zero padding, so rows near the border get less of it than the others. Their
    difference depends on the row only: it is a kx1 convolution of a plane of ones.

    Returns:
        The kxk kernel, exact where the kx1 window lies inside, and the kernel ``border (C, 1, k, 1)``: the pair equals
        ``kxk(x) + border(ones (1, C, H, 1))``, all with half their size as padding, at stride 1.
    """
    if row.bias is None:
        raise ValueError('the first convolution has no bias, so that nothing is lost along the border: use chain')
    whole = chain(Kernel(row.weight, None), col)
    taps = col.weight * row.bias.reshape(-1, 1, 1, 1)
    total = taps.flatten(1).sum(1)
    bias = total if col.bias is None else col.bias + total
    return Kernel(whole.weight, bias), Kernel(taps, -total)


def identity(channels: int, size: Sequence[int], *, like: Tensor, groups: int | None = None) -> Kernel:
    """The convolution of odd size that returns its input: a shortcut as a kernel; dtype and device as ``like``.

    Args:
        channels: of input and output.
        size: the window, one odd length per axis.
        like: a tensor of the wanted dtype and device.
        groups: of the convolution; by default it is depthwise.
    """
    if any(length % 2 == 0 for length in size):
        raise ValueError(f'a {tuple(size)} kernel has no centre: the identity needs odd sizes')
    groups = channels if groups is None else groups
    if groups < 1 or channels % groups:
        raise ValueError(f'{channels} channels do not divide into {groups} groups')
    inputs = channels // groups
    own = torch.eye(inputs, dtype=like.dtype, device=like.device).repeat(groups, 1)  # each output reads its own input
    return embed(Kernel(own.reshape(channels, inputs, *[1] * len(size)), None), size)


def add(*kernels: Kernel) -> Kernel:
    """Parallel convolutions of one input, summed."""
    shapes = {_sizes(kernel.weight) for kernel in kernels}
    if len(shapes) != 1:
        raise ValueError(f'cannot add kernels of shapes {sorted(shapes)}: embed them in one shape first')
    weight = kernels[0].weight
    for kernel in kernels[1:]:
        weight = weight + kernel.weight
    bias: Tensor | None = None
    for kernel in kernels:
        if kernel.bias is not None:
            bias = kernel.bias if bias is None else bias + kernel.bias
    return Kernel(weight, bias)


def concat(*kernels: Kernel, groups: Sequence[int] | None = None) -> Kernel:
    """Parallel convolutions of one input, stacked on the output channels; without groups.

    With groups, the stacked convolution (of all groups together) is exact where each kernel reads its own slice of
    the input, in order; give ``groups`` to have it checked. For grouped convolutions of one input, see
    ``concat_grouped``.

    Args:
        kernels: of one shape, but for the output channels.
        groups: of each kernel.
    """
    if groups is not None:
        sizes = [divmod(len(kernel.weight), count) for kernel, count in zip(kernels, groups, strict=True)]
        if len(set(sizes)) != 1 or sizes[0][1]:
            outputs = [len(kernel.weight) for kernel in kernels]
            raise ValueError(f'cannot stack {outputs} outputs in {list(groups)} groups: all groups must be of one size')
    shapes = {_sizes(kernel.weight)[1:] for kernel in kernels}
    if len(shapes) != 1:
        raise ValueError(f'cannot stack kernels of shapes (O, *{sorted(shapes)}): all but O must agree')
    weight = torch.cat([kernel.weight for kernel in kernels])
    if all(kernel.bias is None for kernel in kernels):
        return Kernel(weight, None)
    return Kernel(
        weight,
        torch.cat([k.weight.new_zeros(len(k.weight)) if k.bias is None else k.bias for k in kernels]),
    )


def norm_after(kernel: Kernel, norm: Affine) -> Kernel:
    """A convolution and the norm of its output as one convolution."""
    scale, shift = norm
    if len(scale) != len(kernel.weight):
        raise ValueError(f'a norm of {len(scale)} channels cannot follow {len(kernel.weight)} output channels')
    weight = kernel.weight * scale.reshape(-1, *[1] * (kernel.weight.dim() - 1))
    return Kernel(weight, shift if kernel.bias is None else kernel.bias * scale + shift)


def norm_before(norm: Affine, kernel: Kernel, *, unpadded: bool = False) -> Kernel:
    """A norm and the 1x1 convolution (or linear layer, or larger unpadded one) that reads it as one.

    Exact when that convolution has no padding and is the only reader of the norm's output.
    That a kernel larger than 1x1 has no padding is for the caller to say, with ``unpadded``.
    """
    weight = kernel.weight
    if not unpadded and any(size != 1 for size in weight.shape[2:]):
        raise ValueError(
            f'cannot fold a norm into a {tuple(weight.shape[2:])} kernel: its shift meets the padding; '
            'where there is none, say unpadded=True'
        )
    outputs, inputs, *_ = _sizes(weight)
    groups, rest = divmod(len(norm.scale), inputs)
    if rest or outputs % max(groups, 1):
        raise ValueError(f'a norm of {len(norm.scale)} channels cannot feed a kernel of shape {tuple(weight.shape)}')
    # one row of scales per output channel: each group reads its own slice of the norm's channels. Without groups these
    # are views, so that training keeps no second and third weight for the backward pass
    rows = (groups, outputs // groups, inputs)
    window = [1] * (weight.dim() - 2)
    scale, shift = (v.reshape(groups, 1, inputs).expand(rows).reshape(-1, inputs, *window) for v in norm)
    moved = (weight * shift).flatten(1).sum(1)
    return Kernel(weight * scale, moved if kernel.bias is None else kernel.bias + moved)


def split(norm: Affine, *channels: int) -> tuple[Affine, ...]:
    """The norm of stacked outputs, cut into one norm per output."""
    if sum(channels) != len(norm.scale):
        raise ValueError(f'cannot split a norm of {len(norm.scale)} channels into {channels}: they must sum up')
    pairs = zip(norm.scale.split(channels), norm.shift.split(channels), strict=True)
    return tuple(Affine(scale, shift) for scale, shift in pairs)


def average(first: Kernel, second: Kernel) -> Kernel:
    """The mean of two linear heads that read one input, as one head."""
    if first.weight.shape != second.weight.shape:
        raise ValueError(f'cannot average heads of shapes {tuple(first.weight.shape)} and {tuple(second.weight.shape)}')
    total = add(first, second)
    return Kernel(total.weight / 2, None if total.bias is None else total.bias / 2)


def _sizes(tensor: Tensor) -> tuple[int, ...]:
    return tuple(map(int, tensor.shape))  # torch.jit.trace makes tensors of sizes, which compare as objects
