"""The attention maps of PSANet (ECCV 2018): from positions relative to each cell to absolute ones."""

from __future__ import annotations

import torch
from torch import Tensor


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Put input (N, h_mask * w_mask, H, W) where it belongs in output (N, H * W, H, W); 0 collects, 1 distributes."""
    relative = input.view(num_, h_mask, w_mask, h_feature, w_feature)
    absolute = torch.zeros(num_, *(h_feature, w_feature) * 2, dtype=input.dtype, device=input.device)
    for row in range(h_feature):
        rows, mask_rows = _overlap(row, half_h_mask, h_mask, h_feature)
        for column in range(w_feature):
            columns, mask_columns = _overlap(column, half_w_mask, w_mask, w_feature)
            absolute[:, rows, columns, row, column] = relative[:, mask_rows, mask_columns, row, column]
    found = absolute.flatten(3).flatten(1, 2)
    output.copy_((found if psa_type == 0 else found.transpose(1, 2)).reshape(output.shape))


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Fill grad_input (N, h_mask * w_mask, H, W) from where its cells went."""
    sent = grad_output.flatten(2)
    sent = (sent if psa_type == 0 else sent.transpose(1, 2)).reshape(num_, *(h_feature, w_feature) * 2)
    relative = torch.zeros(num_, h_mask, w_mask, h_feature, w_feature, dtype=sent.dtype, device=sent.device)
    for row in range(h_feature):
        rows, mask_rows = _overlap(row, half_h_mask, h_mask, h_feature)
        for column in range(w_feature):
            columns, mask_columns = _overlap(column, half_w_mask, w_mask, w_feature)
            relative[:, mask_rows, mask_columns, row, column] = sent[:, rows, columns, row, column]
    grad_input.copy_(relative.reshape(grad_input.shape))


def _overlap(cell: int, half: int, mask_size: int, size: int) -> tuple[slice, slice]:
    """The cells that a mask round this cell covers, and the part of the mask that covers them."""
    first, end = max(0, half - cell), min(mask_size, size + half - cell)
    return slice(first + cell - half, end + cell - half), slice(first, end)
