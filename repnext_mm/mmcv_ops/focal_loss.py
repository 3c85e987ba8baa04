"""Focal loss (arXiv 1708.02002) on sigmoids and on softmax probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny  # under the logarithms


def sigmoid_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Fill output (N, C) with the loss of logits (N, C) for classes (N,), C meaning none; weight is (C,) or empty."""
    p, positive = _probabilities(input, target)
    loss = torch.where(positive, -alpha * (1 - p) ** gamma * _log(p), -(1 - alpha) * p**gamma * _log(1 - p))
    output.copy_(_weighted(loss, weight, target))


def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Fill grad_input (N, C) with the loss's slope."""
    p, positive = _probabilities(input, target)
    slope = torch.where(
        positive,
        -alpha * (1 - p) ** gamma * (1 - p - gamma * p * _log(p)),
        -(1 - alpha) * p**gamma * (gamma * (1 - p) * _log(1 - p) - p),
    )
    grad_input.copy_(_weighted(slope, weight, target))


def softmax_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Fill output (N,) with the loss of probabilities (N, C) for class indices (N,), below 0 meaning ignored."""
    p = _of_target(input, target)
    output.copy_(_heeded(-alpha * (1 - p) ** gamma * _log(p), weight, target))


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Fill grad_input (N, C) with the slope of the loss by the logits; buff (N,) is a part of it."""
    p = _of_target(input, target)
    part = alpha * (gamma * (1 - p) ** (gamma - 1) * p * _log(p) - (1 - p) ** gamma)
    buff.copy_(_heeded(part, weight, target))
    chosen = torch.arange(input.shape[1], device=input.device) == target[:, None]
    grad_input.copy_(torch.where((target >= 0)[:, None], buff[:, None] * (chosen.to(input.dtype) - input), 0.0))


def _wide(tensor: Tensor) -> Tensor:
    """Half precision loses the logarithm's argument: the loss is computed in float32 and rounded once."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _probabilities(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    p = 1 / (1 + torch.exp(-_wide(logits)))
    return p, torch.arange(logits.shape[1], device=logits.device) == target[:, None]


def _of_target(probabilities: Tensor, target: Tensor) -> Tensor:
    return _wide(probabilities).gather(1, target.clamp(min=0)[:, None])[:, 0]


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=TINY).log()


def _weighted(values: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return values * weight[target][:, None] if weight.numel() else values


def _heeded(values: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    if weight.numel():
        values = values * weight[target.clamp(min=0)]
    return torch.where(target >= 0, values, 0.0)
