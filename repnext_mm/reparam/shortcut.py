"""Shortcut elimination: an activated shortcut travels through the layers of its branch and leaves one branch."""

from __future__ import annotations

import torch
from torch import Tensor

from repnext_mm.reparam.kernel import Kernel
from repnext_mm.reparam.laws import identity


def eliminate_shortcut(spatial: Kernel, expand: Kernel, project: Kernel) -> tuple[Kernel, Kernel, Kernel]:
    """``act(x) + project(act(expand(spatial(x))))`` as ``project'(act(expand'(spatial'(x))))``.

    The new spatial convolution returns every input channel beside its own output (2C channels), the new expansion
    hands the former to the activation as they are (C more hidden channels), and the new projection adds them up. The
    network grows: with M hidden channels, from 2CM pointwise weights to 3C(C + M).

    Exact when the activation acts on each element alone and is the same in both places, and when the spatial
    convolution has stride 1 and half its size as padding: the caller's duty.

    Args:
        spatial: depthwise ``(C, 1, kH, kW)``, of odd size.
        expand: 1x1 ``(M, C, 1, 1)``.
        project: 1x1 ``(C, M, 1, 1)``.

    Returns:
        ``(2C, 1, kH, kW)`` in C groups, ``(C + M, 2C, 1, 1)`` and ``(C, C + M, 1, 1)``.

    Raises:
        ValueError: the shapes are others, or do not fit each other.
    """
    channels = len(spatial.weight)
    if spatial.weight.dim() != 4 or spatial.weight.shape[1] != 1:
        raise ValueError(f'spatial kernel of shape {tuple(spatial.weight.shape)}: it must be depthwise, (C, 1, kH, kW)')
    hidden = len(expand.weight)
    for name, kernel, shape in (('expand', expand, (hidden, channels)), ('project', project, (channels, hidden))):
        if kernel.weight.shape != (*shape, 1, 1):
            raise ValueError(
                f'{name} kernel of shape {tuple(kernel.weight.shape)}: with {channels} channels and {hidden} hidden '
                f'ones it must be 1x1, {(*shape, 1, 1)}'
            )
    return _spatial(spatial), _expand(expand), _project(project)


def _spatial(kernel: Kernel) -> Kernel:
    # the group of an input channel holds its copy and its output, next to each other
    copies = identity(len(kernel.weight), (kernel.weight.shape[2], kernel.weight.shape[3]), like=kernel.weight)
    return Kernel(_woven(copies.weight, kernel.weight), _beside_zeros(kernel.bias, len(kernel.weight)))


def _expand(kernel: Kernel) -> Kernel:
    weight = kernel.weight.flatten(1)
    channels = weight.shape[1]
    copies = _unit(channels, like=weight)
    rows = _woven(
        torch.stack([copies, torch.zeros_like(copies)], 2).flatten(1),  # these read the copies only
        torch.stack([torch.zeros_like(weight), weight], 2).flatten(1),  # these the convolution's output only
    )
    return Kernel(rows[:, :, None, None], _beside_zeros(kernel.bias, channels))


def _project(kernel: Kernel) -> Kernel:
    weight = kernel.weight.flatten(1)
    columns = _woven(_unit(len(weight), like=weight), weight.t()).t()
    return Kernel(columns[:, :, None, None], kernel.bias)


def _woven(first: Tensor, second: Tensor) -> Tensor:
    """One of each in turn, then what is left of the longer."""
    count = min(len(first), len(second))
    return torch.cat([torch.stack([first[:count], second[:count]], 1).flatten(0, 1), first[count:], second[count:]])


def _beside_zeros(bias: Tensor | None, channels: int) -> Tensor | None:
    return None if bias is None else _woven(bias.new_zeros(channels), bias)


def _unit(channels: int, *, like: Tensor) -> Tensor:
    return torch.eye(channels, dtype=like.dtype, device=like.device)
