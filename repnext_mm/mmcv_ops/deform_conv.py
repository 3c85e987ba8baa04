"""Deformable convolutions (arXiv 1703.06211 and 1811.11168), by torchvision's kernels.

Those read offsets in mmcv's order, so only the way in and out differs: mmcv passes the tensors to fill. The buffers for
columns and ones stay as they are, and im2col_step, which bounds the compiled operators' memory, says nothing here.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Fill output (N, O, H', W') from input (N, I, H, W), with offset (N, 2 * groups * kH * kW, H', W')."""
    _check(input, weight, offset, group, deformable_group)
    output.copy_(
        torchvision.ops.deform_conv2d(
            input, offset, weight, stride=(dH, dW), padding=(padH, padW), dilation=(dilationH, dilationW)
        )
    )


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Add to gradInput and fill gradOffset."""
    _check(input, weight, offset, group, deformable_group)
    to_input, _, to_offset, _, _ = _backward(
        gradOutput, input, weight, offset, None, (dH, dW, padH, padW, dilationH, dilationW), group, deformable_group
    )
    gradInput += to_input
    gradOffset.copy_(to_offset)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add scale times the weight's gradient to gradWeight (O, I / group, kH, kW)."""
    _check(input, gradWeight, offset, group, deformable_group)
    # The gradient of the weight does not depend on the weight, which this operator is not given.
    _, to_weight, _, _, _ = _backward(
        gradOutput,
        input,
        torch.zeros_like(gradWeight),
        offset,
        None,
        (dH, dW, padH, padW, dilationH, dilationW),
        group,
        deformable_group,
    )
    gradWeight.add_(to_weight, alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """As deform_conv_forward, with mask (N, groups * kH * kW, H', W') as weights of the samples.

    Larger offsets and masks (mmdet's DyHead has such) are read as the compiled operator does: of each image as many
    values as are wanted, from the first on, as if they had the size of the output.
    """
    _check(input, weight, offset, group, deformable_group)
    offset, mask = _first(offset, output.shape[2:]), _first(mask, output.shape[2:])
    output.copy_(
        torchvision.ops.deform_conv2d(
            input,
            offset,
            weight,
            bias if with_bias else None,
            (stride_h, stride_w),
            (pad_h, pad_w),
            (dilation_h, dilation_w),
            mask,
        )
    )


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Add to the gradients of input, weight and bias; fill those of offset and mask."""
    _check(input, weight, offset, group, deformable_group)
    to_input, to_weight, to_offset, to_mask, to_bias = _backward(
        grad_output,
        input,
        weight,
        _first(offset, grad_output.shape[2:]),
        _first(mask, grad_output.shape[2:]),
        (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w),
        group,
        deformable_group,
    )
    grad_input += to_input
    grad_weight += to_weight
    _fill_first(grad_offset, to_offset)
    _fill_first(grad_mask, to_mask)
    if with_bias:
        grad_bias += to_bias


def _backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    geometry: tuple[int, ...],
    group: int,
    deformable_group: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input, weight, offset, mask and bias."""
    gradients: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = torch.ops.torchvision._deform_conv2d_backward(
        grad_output,
        input,
        weight,
        offset,
        input.new_zeros(len(input), 1) if mask is None else mask,
        weight.new_zeros(len(weight)),
        *geometry,
        group,
        deformable_group,
        mask is not None,
    )
    return gradients


def _first(values: Tensor, size: torch.Size) -> Tensor:
    """Values ``(N, C, H, W)`` as ``(N, C, *size)``: the first of each image, as they stand in a contiguous tensor."""
    if values.shape[2:] == size:
        return values
    wanted = values.shape[1] * size.numel()
    if values.shape[1:].numel() < wanted:
        raise RuntimeError(
            f'deform_conv: an output of {tuple(size)} needs offsets and masks of that size or larger, not '
            f'{tuple(values.shape[2:])}'
        )
    return values.flatten(1)[:, :wanted].reshape(len(values), values.shape[1], *size)


def _fill_first(target: Tensor, values: Tensor) -> None:
    """The way back of ``_first``: what was not read gets zeros."""
    rest = target.shape[1:].numel() - values.shape[1:].numel()
    target.copy_(torch.nn.functional.pad(values.flatten(1), (0, rest)).reshape(target.shape))


def _check(input: Tensor, weight: Tensor, offset: Tensor, group: int, deformable_group: int) -> None:
    """torchvision derives the groups from the shapes; mmcv's callers state them."""
    if input.shape[1] != weight.shape[1] * group:
        raise RuntimeError(
            f'deform_conv: input has {input.shape[1]} channels, but a weight of shape '
            f'{tuple(weight.shape)} in {group} groups takes {weight.shape[1] * group}'
        )
    wanted = 2 * deformable_group * weight.shape[2] * weight.shape[3]
    if offset.shape[1] != wanted:
        raise RuntimeError(
            f'deform_conv: offset has {offset.shape[1]} channels, but a kernel of '
            f'{tuple(weight.shape[2:])} in {deformable_group} offset groups takes {wanted}'
        )
