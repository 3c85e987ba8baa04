"""Convolutions and norms as values: what the laws of re-parameterization compute with."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Kernel(NamedTuple):
    """A convolution (or linear layer) without its geometry."""

    weight: Tensor  # (O, I / groups, kH, kW), or (O, I) for a linear layer
    bias: Tensor | None  # (O,); None = structurally absent, not "zero"


class Affine(NamedTuple):
    """A norm that uses running statistics: ``x * scale + shift`` per channel."""

    scale: Tensor  # (C,)
    shift: Tensor  # (C,)


def read(layer: nn.Conv2d | nn.Linear) -> Kernel:
    """The kernel of a layer, as the layer's own parameters (gradients flow to them)."""
    return Kernel(layer.weight, layer.bias)


def folds(norm: nn.Module) -> bool:
    """Whether a norm is an affine map right now: batch norm (or SyncBN) in eval mode with running statistics."""
    return isinstance(norm, _BatchNorm) and not norm.training and norm.running_mean is not None


def read_norm(norm: nn.Module) -> Affine:
    """The affine map of a batch norm in eval mode; gradients flow to its weight and bias.

    Raises:
        ValueError: the norm would use batch statistics, or is no batch norm.
    """
    if not isinstance(norm, _BatchNorm):
        raise ValueError(f'{type(norm).__name__} is no affine map: only batch norms fold, keep this norm as it is')
    if norm.training or norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            f'{type(norm).__name__} uses batch statistics: folding needs running statistics, call eval() first'
        )
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return Affine(scale, shift)


def convolve(x: Tensor, kernel: Kernel, *, like: nn.Conv2d) -> Tensor:
    """Convolve ``x (N, C, H, W)`` with a kernel, with the stride, padding, dilation and groups of ``like``."""
    return F.conv2d(x, kernel.weight, kernel.bias, like.stride, like.padding, like.dilation, like.groups)


def to_conv(kernel: Kernel, *, like: nn.Conv2d) -> nn.Conv2d:
    """A new convolution with ``like``'s geometry, dtype, device and memory format; it needs no gradient."""
    channels = kernel.weight.shape[1] * like.groups
    conv = nn.Conv2d(
        channels,
        kernel.weight.shape[0],
        (kernel.weight.shape[2], kernel.weight.shape[3]),
        cast(tuple[int, int], like.stride),
        cast(tuple[int, int], like.padding),
        cast(tuple[int, int], like.dilation),
        like.groups,
        bias=kernel.bias is not None,
        device='meta',  # the values come from the kernel
    )
    conv.weight = nn.Parameter(_placed(kernel.weight, like.weight), requires_grad=False)
    if kernel.bias is not None:
        conv.bias = nn.Parameter(_placed(kernel.bias, like.weight), requires_grad=False)
    return conv.train(like.training)


def to_linear(kernel: Kernel, *, like: nn.Linear) -> nn.Linear:
    """A new linear layer with ``like``'s dtype and device; it needs no gradient."""
    outputs, inputs = kernel.weight.shape
    linear = nn.Linear(inputs, outputs, bias=kernel.bias is not None, device='meta')  # the values come from the kernel
    linear.weight = nn.Parameter(_placed(kernel.weight, like.weight), requires_grad=False)
    if kernel.bias is not None:
        linear.bias = nn.Parameter(_placed(kernel.bias, like.weight), requires_grad=False)
    return linear.train(like.training)


def _placed(value: Tensor, like: Tensor) -> Tensor:
    # copy=True: a fused network must never share a tensor with the branches it came from
    value = value.detach().to(like.device, like.dtype, copy=True)
    channels_last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    if value.dim() == 4 and channels_last:
        return value.contiguous(memory_format=torch.channels_last)
    return value.contiguous()
