"""The laws of re-parameterization: pure, differentiable functions from kernels to kernels.

Every law is exact under the condition that its docstring states. Where the condition can be seen from the kernels,
the law raises a ``ValueError``; geometry (padding, stride, who reads an output) is not part of a kernel and remains
the caller's duty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from repnext_mm.reparam.kernel import Affine, Kernel


def embed(kernel: Kernel, size: Sequence[int]) -> Kernel:
    """Center a kernel in a larger zero window: same output once the padding grows alike."""
    window = kernel.weight.shape[2:]
    margins = [new - old for new, old in zip(size, window, strict=False)]
    if len(size) != len(window) or any(margin < 0 or margin % 2 for margin in margins):
        raise ValueError(
            f'cannot center a {tuple(window)} kernel in {tuple(size)}: margins must be even and >= 0, one per axis'
        )
    pads = [margin // 2 for margin in reversed(margins) for _ in range(2)]  # F.pad lists the last axis first
    return Kernel(F.pad(kernel.weight, pads), kernel.bias)


def dilate(kernel: Kernel, step: int) -> Kernel:
    """Write a dilated kernel as a dense one: 2x2 with dilation 2 becomes the four corners of a 3x3."""
    if step < 1:
        raise ValueError(f'dilation {step} is not a dilation: it must be >= 1')
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
        raise ValueError(f'a {tuple(size)} kernel has no center: the identity needs odd sizes')
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


def pointwise_before(
    first: Kernel, then: Kernel, *, groups: tuple[int, int] = (1, 1), zeros_between: bool = True
) -> Kernel:
    """A 1x1 convolution (stride 1), then a kxk one, as one kxk with the second's geometry.

    Exact when the 1x1 has no bias. Its bias would meet the zeros that the second pads with, an error along the border:
    with a bias, the second must be unpadded, or the padding be placed on the input of the 1x1 (which then returns its
    bias there) instead of on its output. The merged convolution pads with zeros in both cases.

    Args:
        first: ``(M, I / g, 1, 1)``.
        then: ``(O, M / h, ...)``.
        groups: ``(g, h)``, of both; the merged convolution has their greatest common divisor.
        zeros_between: the second convolution pads the output of the first; say ``False`` where it does not.

    Raises:
        ValueError: the shapes do not follow each other, or a bias would meet zeros.
    """
    _check_pointwise(first)
    if first.bias is not None and zeros_between:
        raise ValueError(
            'cannot merge a biased 1x1 convolution into the next: its bias meets the zero padding; where nothing is '
            'padded, or the input of the 1x1 is, say zeros_between=False'
        )
    merged, middle = _common_groups(first, then, groups)
    inner = ungroup(first, groups[0], into=merged).weight.reshape(merged, middle // merged, -1)
    outer = ungroup(then, groups[1], into=merged).weight
    window = outer.shape[2:]
    outer = outer.reshape(merged, len(outer) // merged, middle // merged, -1)
    weight = _einsum('gomk,gmi->goik', outer, inner).reshape(len(then.weight), inner.shape[2], *window)
    if first.bias is None:
        return Kernel(weight, then.bias)
    bias = _einsum('gom,gm->go', outer.sum(-1), first.bias.reshape(merged, -1)).flatten()
    return Kernel(weight, bias if then.bias is None else then.bias + bias)


def pointwise_after(first: Kernel, then: Kernel, *, groups: tuple[int, int] = (1, 1)) -> Kernel:
    """A kxk convolution, then an unpadded 1x1 one, as one kxk; always exact. Strides multiply.

    Args:
        first: ``(M, I / g, ...)``.
        then: ``(O, M / h, 1, 1)``.
        groups: ``(g, h)``, of both; the merged convolution has their greatest common divisor.

    Raises:
        ValueError: the shapes do not follow each other.
    """
    _check_pointwise(then)
    merged, middle = _common_groups(first, then, groups)
    inner = ungroup(first, groups[0], into=merged).weight
    window = inner.shape[2:]
    inputs = inner.shape[1]
    inner = inner.reshape(merged, middle // merged, inputs, -1)
    outer = ungroup(then, groups[1], into=merged).weight.reshape(merged, -1, middle // merged)
    weight = _einsum('gom,gmik->goik', outer, inner).reshape(len(then.weight), inputs, *window)
    if first.bias is None:
        return Kernel(weight, then.bias)
    bias = _einsum('gom,gm->go', outer, first.bias.reshape(merged, -1)).flatten()
    return Kernel(weight, bias if then.bias is None else then.bias + bias)


def norm_after(kernel: Kernel, norm: Affine) -> Kernel:
    """A convolution and the norm of its output as one convolution."""
    scale, shift = norm
    if len(scale) != len(kernel.weight):
        raise ValueError(f'a norm of {len(scale)} channels cannot follow {len(kernel.weight)} output channels')
    weight = kernel.weight * scale.reshape(-1, *[1] * (kernel.weight.dim() - 1))
    return Kernel(weight, shift if kernel.bias is None else kernel.bias * scale + shift)


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


def norm_of_sum(norm: Affine, count: int) -> tuple[Affine, ...]:
    """The norm of a sum, as one norm per summand: all are scaled, the first is shifted too; always exact."""
    if count < 1:
        raise ValueError(f'a sum of {count} summands has no norm: it needs at least one')
    unmoved = Affine(norm.scale, torch.zeros_like(norm.shift))
    return (norm, *[unmoved] * (count - 1))


def average(first: Kernel, second: Kernel) -> Kernel:
    """The mean of two linear heads that read one input, as one head."""
    if first.weight.shape != second.weight.shape:
        raise ValueError(f'cannot average heads of shapes {tuple(first.weight.shape)} and {tuple(second.weight.shape)}')
    total = add(first, second)
    return Kernel(total.weight / 2, None if total.bias is None else total.bias / 2)


def average_pool(channels: int, size: Sequence[int], *, like: Tensor, groups: int | None = None) -> Kernel:
    """Average pooling as a convolution; dtype and device as ``like``.

    Exact with ``count_include_pad=True`` (PyTorch's default) or without padding, with ``ceil_mode=False`` and without
    ``divisor_override``: otherwise windows along the border divide by other numbers. The convolution takes the
    stride (by default the window) and the padding of the pooling.

    Args:
        channels: of input and output.
        size: the window, one length per axis.
        like: a tensor of the wanted dtype and device.
        groups: of the convolution; by default it is depthwise.
    """
    if any(length < 1 for length in size):
        raise ValueError(f'a {tuple(size)} window averages nothing: lengths must be >= 1')
    own = identity(channels, [1] * len(size), like=like, groups=groups).weight
    return Kernel(own.expand(-1, -1, *size) / math.prod(size), None)


def norm_alone(norm: Affine, *, size: Sequence[int] = (1, 1), groups: int | None = None) -> Kernel:
    """A norm that follows no convolution, as one: depthwise 1x1, or larger and with fewer groups to add to others.

    Args:
        norm: with running statistics.
        size: the window, one odd length per axis; the padding is half of it.
        groups: of the convolution; by default it is depthwise.
    """
    return norm_after(identity(len(norm.scale), size, like=norm.scale, groups=groups), norm)


def as_pointwise(linear: Kernel, *, axes: int = 2) -> Kernel:
    """A linear layer over the channels as a 1x1 convolution over this many spatial axes."""
    if linear.weight.dim() != 2:
        raise ValueError(f'a kernel of shape {tuple(linear.weight.shape)} is not a linear layer: it needs (O, I)')
    new_axes = (..., *[None] * axes)
    return Kernel(linear.weight[new_axes], linear.bias)


def as_linear(pointwise: Kernel) -> Kernel:
    """A 1x1 convolution as a linear layer over the channels.

    Exact without groups (``ungroup`` it first), stride and padding.
    """
    if pointwise.weight.dim() < 3 or any(length != 1 for length in pointwise.weight.shape[2:]):
        raise ValueError(
            f'a kernel of shape {tuple(pointwise.weight.shape)} is not a linear layer: its window must be 1'
        )
    return Kernel(pointwise.weight.flatten(1), pointwise.bias)


def _check_pointwise(kernel: Kernel) -> None:
    if any(length != 1 for length in kernel.weight.shape[2:]):
        raise ValueError(f'a {tuple(kernel.weight.shape[2:])} kernel is not a 1x1: its window must be 1 along all axes')


def _common_groups(first: Kernel, then: Kernel, groups: tuple[int, int]) -> tuple[int, int]:
    """The groups of the merged convolution, and the channels between the two."""
    middle = len(first.weight)
    if middle != then.weight.shape[1] * groups[1] or first.weight.dim() != then.weight.dim():
        raise ValueError(
            f'a convolution of shape {tuple(then.weight.shape)} with {groups[1]} groups cannot follow one of shape '
            f'{tuple(first.weight.shape)}: it does not read {middle} channels'
        )
    return math.gcd(*groups), middle


def _sizes(tensor: Tensor) -> tuple[int, ...]:
    return tuple(map(int, tensor.shape))  # torch.jit.trace makes tensors of sizes, which compare as objects


def _einsum(equation: str, *operands: Tensor) -> Tensor:
    # autocast would multiply in half precision; it knows no meta device
    device = operands[0].device.type
    if device == 'meta':
        return torch.einsum(equation, *operands)
    with torch.autocast(device, enabled=False):
        return torch.einsum(equation, *operands)
