"""Bilinear samples of feature maps at the grids of RoIs, by the border rule that mmcv's RoI operators share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SAMPLES_AT_ONCE = 1 << 24  # values in memory


class Grid(NamedTuple):
    """Where an RoI's bins are sampled: y (R, PH, PW, GH, 1) and x (R, PH, PW, 1, GW), in cells of the map."""

    images: Tensor  # (R,), which map of the batch
    y: Tensor
    x: Tensor


class Corners(NamedTuple):
    """The four cells round every sample, as flat positions in a map, and their weights; outside the map all zero."""

    positions: tuple[Tensor, Tensor, Tensor, Tensor]
    weights: tuple[Tensor, Tensor, Tensor, Tensor]
    inside: Tensor
    y_ends: tuple[Tensor, Tensor]
    x_ends: tuple[Tensor, Tensor]


def grid_sizes(extents: Tensor, bins: int, sampling_ratio: int) -> Tensor:
    """Samples along one axis of a bin: as given, or one per cell of the map."""
    if sampling_ratio > 0:
        return torch.full_like(extents, sampling_ratio, dtype=torch.long)
    return torch.ceil(extents / bins).long()


def groups_of_rois(sizes_y: Tensor, sizes_x: Tensor, values_per_sample: int) -> list[tuple[int, int, Tensor]]:
    """RoIs with as many samples, few enough at once: rows, columns, indices of the RoIs."""
    result = []
    for rows, columns in torch.stack([sizes_y, sizes_x], 1).unique(dim=0).tolist():
        members = ((sizes_y == rows) & (sizes_x == columns)).nonzero().flatten()
        at_once = max(1, SAMPLES_AT_ONCE // max(1, rows * columns * values_per_sample))
        result += [(rows, columns, part) for part in members.split(at_once)]
    return result


def positions_in_bins(start: Tensor, bin_size: Tensor, bins: int, samples: int) -> Tensor:
    """(R, bins, samples) coordinates along one axis; the order of operations is that of the compiled operators."""
    bin_index = torch.arange(bins, device=start.device, dtype=start.dtype)
    half_way = torch.arange(samples, device=start.device, dtype=start.dtype) + 0.5
    lower = start[:, None] + bin_index * bin_size[:, None]
    return lower[:, :, None] + (half_way * bin_size[:, None] / samples)[:, None, :]


def corners(y: Tensor, x: Tensor, height: int, width: int) -> Corners:
    """Up to one cell beyond its border a map continues with the border's values; farther out it is zero."""
    y, x = torch.broadcast_tensors(y, x)
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    (y_low, y_high, y_part), (x_low, x_high, x_part) = (
        _between(torch.where(inside, place, 0.0), size) for place, size in ((y, height), (x, width))
    )
    y_rest, x_rest = 1 - y_part, 1 - x_part
    return Corners(
        (y_low * width + x_low, y_low * width + x_high, y_high * width + x_low, y_high * width + x_high),
        tuple(
            torch.where(inside, weight, 0.0)
            for weight in (y_rest * x_rest, y_rest * x_part, y_part * x_rest, y_part * x_part)  # type: ignore[arg-type]
        ),
        inside,
        (y_low, y_high),
        (x_low, x_high),
    )


def _between(place: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    place = place.clamp(min=0)
    low = place.long().clamp(max=size - 1)
    return low, (low + 1).clamp(max=size - 1), torch.where(low >= size - 1, 0.0, place - low)
