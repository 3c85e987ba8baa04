"""Laws that merge a 1x1 convolution with the convolution before or after it; linear layers chain alike."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repnext_mm.reparam.grouped import ungroup
from repnext_mm.reparam.kernel import Kernel


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


def _check_pointwise(kernel: Kernel) -> None:
    if any(length != 1 for length in kernel.weight.shape[2:]):
        raise ValueError(f'a {tuple(kernel.weight.shape[2:])} kernel is no 1x1: its window must be 1 along all axes')


def _common_groups(first: Kernel, then: Kernel, groups: tuple[int, int]) -> tuple[int, int]:
    """The groups of the merged convolution, and the channels between the two."""
    middle = len(first.weight)
    if middle != then.weight.shape[1] * groups[1] or first.weight.dim() != then.weight.dim():
        raise ValueError(
            f'a convolution of shape {tuple(then.weight.shape)} with {groups[1]} groups cannot follow one of shape '
            f'{tuple(first.weight.shape)}: it does not read {middle} channels'
        )
    return math.gcd(*groups), middle


def _einsum(equation: str, *operands: Tensor) -> Tensor:
    # autocast would multiply in half precision; it knows no meta device
    device = operands[0].device.type
    if device == 'meta':
        return torch.einsum(equation, *operands)
    with torch.autocast(device, enabled=False):
        return torch.einsum(equation, *operands)
