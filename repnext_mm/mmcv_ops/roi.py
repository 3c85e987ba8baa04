"""RoIAlign (arXiv 1703.06870) and RoIPool (arXiv 1504.08083)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import torchvision
from torch import Tensor

from repnext_mm.mmcv_ops.sampling import corners, grid_sizes, groups_of_rois, positions_in_bins
from repnext_mm.mmcv_ops.suppression import as_float32

ENOUGH = 2**18  # pooled values from which further threads pay off
LEAST = -10000.0  # where the compiled maximum starts from: what is below is not seen


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill output (R, C, PH, PW) with means (pool_mode 1) or maxima (0) of input (N, C, H, W) in rois (R, 5).

    Maxima also fill argmax_y and argmax_x with the places of the samples, -1 where there is none.
    """
    _check_rois(input, rois, aligned)
    if pool_mode:
        bins, scale = (aligned_height, aligned_width), as_float32(spatial_scale)
        features = input.contiguous()  # once, not for every part of the RoIs
        means = _in_threads(
            lambda part: torchvision.ops.roi_align(features, part, bins, scale, sampling_ratio, aligned),
            rois.chunk(_threads(output)),
        )
        output.copy_(torch.cat(means))
        return
    channels, height, width = input.shape[1:]
    shift = 0.5 if aligned else 0.0
    start_x, start_y, end_x, end_y = (rois[:, 1:] * as_float32(spatial_scale) - shift).unbind(1)
    size_y, size_x = end_y - start_y, end_x - start_x
    if not aligned:
        size_y, size_x = size_y.clamp(min=1), size_x.clamp(min=1)
    output.fill_(LEAST)
    argmax_y.fill_(-1)
    argmax_x.fill_(-1)
    maps, images = input.flatten(2), rois[:, 0].long()
    sizes = (grid_sizes(size_y, aligned_height, sampling_ratio), grid_sizes(size_x, aligned_width, sampling_ratio))
    for rows, columns, part in groups_of_rois(*sizes, channels * aligned_height * aligned_width):
        if not rows * columns:
            continue
        y = positions_in_bins(start_y[part], size_y[part] / aligned_height, aligned_height, rows)
        x = positions_in_bins(start_x[part], size_x[part] / aligned_width, aligned_width, columns)
        y, x = torch.broadcast_tensors(y[:, :, None, :, None], x[:, None, :, None, :])  # (R, PH, PW, rows, columns)
        around = corners(y, x, height, width)
        first, *others = (  # (R, PH, PW, rows, columns, C)
            weight[..., None] * maps[images[part].view(-1, 1, 1, 1, 1), :, position]
            for weight, position in zip(around.weights, around.positions, strict=True)
        )
        values = sum(others, first).flatten(3, 4)
        largest, which = values.max(3)
        seen = (largest > LEAST).movedim(-1, 1)
        output[part] = torch.where(seen, largest.movedim(-1, 1), output[part])
        for argmax, place in ((argmax_y, y), (argmax_x, x)):
            argmax[part] = torch.where(seen, place.flatten(3).gather(3, which).movedim(-1, 1), argmax[part])


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add to grad_input (N, C, H, W) what grad_output (R, C, PH, PW) sends back."""
    _check_rois(grad_input, rois, aligned)
    scale, bins = as_float32(spatial_scale), (aligned_height, aligned_width)
    if pool_mode and grad_input.is_cuda and torch.are_deterministic_algorithms_enabled():
        with torch.enable_grad():  # torchvision's forward has a deterministic way there, its backward kernel has not
            zeros = torch.zeros_like(grad_input, requires_grad=True)
            pooled = torchvision.ops.roi_align(zeros, rois, bins, scale, sampling_ratio, aligned)
            grad_input += torch.autograd.grad(pooled, zeros, grad_output)[0]
    elif pool_mode:
        images, channels, height, width = grad_input.shape
        parts = grad_output.chunk(_threads(grad_output), 1)  # whole channels: the sums keep their order
        sums = _in_threads(
            lambda part: torch.ops.torchvision._roi_align_backward(
                part, rois, scale, *bins, images, part.shape[1], height, width, sampling_ratio, aligned
            ),
            [part.contiguous() for part in parts],
        )
        grad_input += torch.cat(sums, 1)
    else:
        channels, height, width = grad_input.shape[1:]
        around = corners(argmax_y, argmax_x, height, width)
        maps = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
        sent = torch.where(argmax_y != -1, grad_output, 0.0)
        for weight, position in zip(around.weights, around.positions, strict=True):
            add_at(grad_input, maps[..., None, None] * (height * width) + position, sent * weight)


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Fill output (R, C, PH, PW) with the maxima of the cells under each bin, argmax with their places in a map.

    As in mmcv, and other than in torchvision, the corners of rois (R, 5) are not rounded first.
    """
    height, width = input.shape[2:]
    scale = as_float32(spatial_scale)
    low, high = rois[:, 1:3] * scale, (rois[:, 3:5] + 1) * scale
    columns = _cells(low[:, 0], high[:, 0], pooled_width, width)
    rows = _cells(low[:, 1], high[:, 1], pooled_height, height)
    for roi, image in enumerate(rois[:, 0].long().tolist()):
        if not (high[roi] > low[roi]).all():
            continue  # the compiled operator leaves such an RoI's outputs as they came, too
        output[roi], argmax[roi] = 0, -1
        for column, (left, right) in enumerate(columns[roi]):
            if left >= right:
                continue
            # The maximum of each row, then the first row that has it: the first such cell of the bin, row by row.
            of_row, place_in_row = input[image, :, :, left:right].max(2)
            for row, (top, bottom) in enumerate(rows[roi]):
                if top >= bottom:
                    continue
                output[roi, :, row, column], which = of_row[:, top:bottom].max(1)
                place = place_in_row[:, top:bottom].gather(1, which[:, None])[:, 0]
                argmax[roi, :, row, column] = ((top + which) * width + left + place).to(argmax.dtype)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add grad_output (R, C, PH, PW) to grad_input (N, C, H, W) at the maxima."""
    channels, height, width = grad_input.shape[1:]
    maps = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    position = maps[..., None, None] * (height * width) + argmax.clamp(min=0)
    add_at(grad_input, position, torch.where(argmax >= 0, grad_output, 0.0))


def _threads(pooled: Tensor) -> int:
    """How many threads to use: torchvision's kernels for a CPU use one, whatever torch is allowed."""
    plain = pooled.device.type == 'cpu' and pooled.dtype in (
        torch.float32,
        torch.float64,
    )  # half: autocast is per thread
    return torch.get_num_threads() if plain and pooled.numel() >= ENOUGH else 1


def _in_threads(call: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> list[Tensor]:
    """call(part) for every part, side by side; no threads are kept, since a process may fork later."""
    if len(parts) == 1:
        return [call(parts[0])]
    without_gradient = torch.no_grad()(call)  # gradient mode is per thread
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(without_gradient, parts))


def _check_rois(features: Tensor, rois: Tensor, aligned: bool) -> None:
    if rois.dtype != features.dtype:
        raise RuntimeError(f'roi_align: rois are {rois.dtype} but features are {features.dtype}: pass one dtype')
    if aligned and rois.device.type == 'cpu' and not (rois[:, 3:] >= rois[:, 1:3]).all():  # unseen on a GPU: no sync
        raise RuntimeError('roi_align: with aligned=True an RoI needs x2 >= x1 and y2 >= y1, and no NaN')


def _cells(low: Tensor, high: Tensor, bins: int, size: int) -> list[list[list[int]]]:
    """For every RoI and bin the first cell along one axis, and the one after the last."""
    index = torch.arange(bins, device=low.device, dtype=low.dtype)
    bin_size = ((high - low) / bins)[:, None]
    first = (index * bin_size + low[:, None]).floor()
    end = ((index + 1) * bin_size + low[:, None]).ceil()
    result: list[list[list[int]]] = torch.stack([first, end], -1).clamp(0, size).long().tolist()
    return result


def add_at(maps: Tensor, positions: Tensor, values: Tensor) -> None:
    """Add values at flat positions of maps, in place, whatever their memory format."""
    sums = torch.zeros(maps.numel(), dtype=maps.dtype, device=maps.device)
    maps += sums.index_add_(0, positions.flatten(), values.to(maps.dtype).flatten()).view(maps.shape)
