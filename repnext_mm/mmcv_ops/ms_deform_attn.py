"""Multi-scale deformable attention (arXiv 2010.04159), by grid_sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """(N, queries, heads * D) from value (N, keys, heads, D), locations (N, queries, heads, levels, points, 2) in 0..1.

    The shapes (levels, 2) are heights and widths; im2col_step, which bounds the compiled operator's memory, says
    nothing here.
    """
    return _attend(value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Add to grad_value, fill the gradients of the locations and of the attention weights."""
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (value, sampling_locations, attention_weights)]
        output = _attend(inputs[0], value_spatial_shapes, value_level_start_index, *inputs[1:])
        to_value, to_locations, to_weights = torch.autograd.grad(output, inputs, grad_output)
    grad_value += to_value
    grad_sampling_loc.copy_(to_locations)
    grad_attn_weight.copy_(to_weights)


def _attend(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    count, _, heads, channels = value.shape
    queries = locations.shape[1]
    half = value.dtype in (torch.float16, torch.bfloat16)
    total = value.new_zeros(count * heads, channels, queries, dtype=torch.float32 if half else value.dtype)
    for level, ((height, width), start) in enumerate(zip(shapes.tolist(), starts.tolist(), strict=True)):
        maps = value[:, start : start + height * width].permute(0, 2, 3, 1)
        samples = F.grid_sample(
            maps.reshape(count * heads, channels, height, width).to(total.dtype),
            (2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1).to(total.dtype),
            mode='bilinear',
            padding_mode='zeros',
            align_corners=False,
        )
        shares = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        total = total + (samples * shares).sum(-1)
    return total.view(count, heads * channels, queries).transpose(1, 2).contiguous().to(value.dtype)
