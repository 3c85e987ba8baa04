"""The two ends of a convolution that is evaluated at chosen cells only (guided anchoring, arXiv 1901.03278)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Fill col (C * kH * kW, M) with the windows of im (1, C, H, W) round M cells."""
    # One kernel more of zeros on the far side: a cell's window may reach there where the padding is narrow.
    padded = F.pad(im[0], (pad_w, pad_w + kernel_w, pad_h, pad_h + kernel_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows, columns].reshape(col.shape))


def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Put col (C, M) at M cells of im (1, C, H, W)."""
    im[0, :, mask_h_idx, mask_w_idx] = col
