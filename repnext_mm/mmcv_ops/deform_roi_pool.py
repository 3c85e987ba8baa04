"""Deformable RoI pooling (arXiv 1703.06211): RoIAlign whose bins are moved by learned offsets."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from repnext_mm.mmcv_ops.roi import add_at
from repnext_mm.mmcv_ops.sampling import corners, grid_sizes, groups_of_rois, positions_in_bins
from repnext_mm.mmcv_ops.suppression import as_float32


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Fill output (R, C, PH, PW) with means of samples of input (N, C, H, W); offset is (R, 2, PH, PW) or empty."""
    height, width = input.shape[2:]
    maps, images = input.flatten(2), rois[:, 0].long()
    output.zero_()
    for part, y, x, _ in _samples(
        input, rois, offset, pooled_height, pooled_width, spatial_scale, sampling_ratio, gamma
    ):
        around = corners(y, x, height, width)
        for weight, position in zip(around.weights, around.positions, strict=True):
            values = weight[..., None] * maps[images[part].view(-1, 1, 1, 1, 1), :, position]
            output[part] += values.mean((3, 4)).movedim(-1, 1)


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Add to grad_input and grad_offset what grad_output (R, C, PH, PW) sends back."""
    channels, height, width = input.shape[1:]
    maps, images = input.flatten(2), rois[:, 0].long()
    channel = torch.arange(channels, device=rois.device)
    for part, y, x, (size_y, size_x) in _samples(
        input, rois, offset, pooled_height, pooled_width, spatial_scale, sampling_ratio, gamma
    ):
        around = corners(y, x, height, width)
        image = images[part].view(-1, 1, 1, 1, 1)
        sent = (grad_output[part] / (y.shape[3] * x.shape[4])).movedim(1, -1)[:, :, :, None, None]
        plane = (image[..., None] * channels + channel) * (height * width)
        for weight, position in zip(around.weights, around.positions, strict=True):
            add_at(grad_input, plane + position[..., None], sent * weight[..., None])
        if not offset.numel():
            continue
        low_low, low_high, high_low, high_high = (maps[image, :, position] for position in around.positions)
        (y_low, y_high), (x_low, x_high) = around.y_ends, around.x_ends
        # By the ends and the place as it was: in the cell outside the border this goes on as if the map did,
        # where the value itself stands still. So does mmcv's.
        above, below, left, right = (
            (distance * around.inside)[..., None] for distance in (y - y_low, y_high - y, x - x_low, x_high - x)
        )
        along_x = above * (high_high - high_low) + below * (low_high - low_low)
        along_y = left * (high_high - low_high) + right * (high_low - low_low)
        for axis, slope, size in ((0, along_x, size_x), (1, along_y, size_y)):
            grad_offset[part, axis] += gamma * size[:, None, None] * (sent * slope).sum((3, 4, 5))


def _samples(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Iterator[tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]]:
    """Indices of RoIs, their y (R, PH, PW, rows, 1) and x (R, PH, PW, 1, columns), heights and widths."""
    start_x, start_y, end_x, end_y = (rois[:, 1:] * as_float32(spatial_scale) - 0.5).unbind(1)
    size_y, size_x = end_y - start_y, end_x - start_x
    sizes = (grid_sizes(size_y, pooled_height, sampling_ratio), grid_sizes(size_x, pooled_width, sampling_ratio))
    for rows, columns, part in groups_of_rois(*sizes, input.shape[1] * pooled_height * pooled_width):
        if rows <= 0 or columns <= 0:
            continue
        height, width = size_y[part], size_x[part]
        y = positions_in_bins(start_y[part], height / pooled_height, pooled_height, rows)[:, :, None, :, None]
        x = positions_in_bins(start_x[part], width / pooled_width, pooled_width, columns)[:, None, :, None, :]
        moved_y = moved_x = torch.zeros((), dtype=rois.dtype, device=rois.device)
        if offset.numel():
            moved_x = (gamma * width.view(-1, 1, 1) * offset[part, 0])[..., None, None]
            moved_y = (gamma * height.view(-1, 1, 1) * offset[part, 1])[..., None, None]
        yield part, *torch.broadcast_tensors(y + moved_y, x + moved_x), (height, width)
