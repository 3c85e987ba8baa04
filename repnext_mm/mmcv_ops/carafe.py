"""CARAFE (arXiv 1905.02188): upsampling by a kernel of its own for every output cell."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """As carafe_naive_forward; keeps the features in rfeatures, which carafe_backward is given."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """As carafe_naive_backward."""
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor)


def carafe_naive_forward(
    features: Tensor,
    masks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fill output (N, C, sH, sW) from features (N, C, H, W) and masks (N, groups * k², sH, sW)."""
    margin = kernel_size // 2
    padded = F.pad(features, [margin] * 4)
    total = _by_cell(output.new_zeros(output.shape), group_size, scale_factor)
    for tap, (row, column) in _taps(kernel_size):
        window = padded[:, :, row : row + features.shape[2], column : column + features.shape[3]]
        total += _by_cell(window, group_size, 1) * _of_tap(masks, tap, group_size, scale_factor)
    output.copy_(total.reshape(output.shape))


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Add to bottom_grad (N, C, H, W), fill mask_grad (N, groups * k², sH, sW)."""
    margin, (height, width) = kernel_size // 2, features.shape[2:]
    padded = F.pad(features, [margin] * 4)
    padded_grad = padded.new_zeros(padded.shape)
    sent = _by_cell(top_grad, group_size, scale_factor)
    for tap, (row, column) in _taps(kernel_size):
        rows, columns = slice(row, row + height), slice(column, column + width)
        to_window = (sent * _of_tap(masks, tap, group_size, scale_factor)).sum((4, 6))
        padded_grad[:, :, rows, columns] += to_window.flatten(1, 2)
        to_mask = (sent * _by_cell(padded[:, :, rows, columns], group_size, 1)).sum(2)
        mask_grad[:, tap :: kernel_size**2] = to_mask.reshape(len(masks), group_size, *masks.shape[2:])
    bottom_grad += padded_grad[:, :, margin : margin + height, margin : margin + width]


def _taps(kernel_size: int) -> Iterator[tuple[int, tuple[int, int]]]:
    for tap in range(kernel_size**2):
        yield tap, divmod(tap, kernel_size)


def _by_cell(maps: Tensor, groups: int, scale: int) -> Tensor:
    """(N, groups, C / groups, H, s, W, s)."""
    count, channels, height, width = maps.shape
    return maps.reshape(count, groups, channels // groups, height // scale, scale, width // scale, scale)


def _of_tap(masks: Tensor, tap: int, groups: int, scale: int) -> Tensor:
    return _by_cell(masks[:, tap :: masks.shape[1] // groups], groups, scale)
