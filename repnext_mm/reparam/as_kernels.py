"""Layers that are convolutions in disguise: average pooling, a norm alone, a linear layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from repnext_mm.reparam.kernel import Affine, Kernel
from repnext_mm.reparam.laws import identity, norm_after


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
    """A linear layer over the channels as a 1x1 convolution of an image with so many axes."""
    if linear.weight.dim() != 2:
        raise ValueError(f'a kernel of shape {tuple(linear.weight.shape)} is no linear layer: it needs (O, I)')
    return Kernel(linear.weight[(..., *[None] * axes)], linear.bias)


def as_linear(pointwise: Kernel) -> Kernel:
    """A 1x1 convolution as a linear layer over the channels.

    Exact without groups (``ungroup`` it first), stride and padding.
    """
    if pointwise.weight.dim() < 3 or any(length != 1 for length in pointwise.weight.shape[2:]):
        raise ValueError(
            f'a kernel of shape {tuple(pointwise.weight.shape)} is no linear layer: its window must be 1 along all axes'
        )
    return Kernel(pointwise.weight.flatten(1), pointwise.bias)
