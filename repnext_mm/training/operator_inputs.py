"""What mmcv's operators can read, given to them whatever the layout and dtype of the network around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def guard_operators(model: nn.Module) -> None:
    """Give the operators of mmcv that a model uses inputs that they read correctly; calling it again changes nothing.

    The compiled operators take the address of a tensor and count ``(N, C, H, W)`` from there: on a CPU, RoIAlign reads
    a channels_last tensor as another image, without an error. And on a CPU they have no bfloat16. So the operators and
    mmdet's RoI extractors, which would cast boxes to the dtype of the features, get contiguous 4-D inputs, and float32
    for bfloat16 on a CPU; what mmdet's dense heads predict, which NMS reads, becomes float32 there too.
    """
    for module in model.modules():
        if is_operator(module) or isinstance(getattr(module, 'roi_layers', None), nn.ModuleList):
            if _give_readable not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(_give_readable, with_kwargs=True)
        elif hasattr(module, 'loss_and_predict') and _predict_readable not in module._forward_hooks.values():
            module.register_forward_hook(_predict_readable)


def is_operator(module: nn.Module) -> bool:
    """Whether this is one of ``mmcv.ops``."""
    return any(kind.__module__.startswith('mmcv.ops.') for kind in type(module).__mro__)


def _give_readable(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return _readable(args), _readable(kwargs)


def _predict_readable(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    return _readable(output, contiguous=False)


def _readable(value: Any, *, contiguous: bool = True) -> Any:
    if isinstance(value, Tensor):
        if value.dtype == torch.bfloat16 and value.device.type == 'cpu':
            value = value.float()
        return value.contiguous() if contiguous and value.dim() == 4 else value
    if type(value) in (tuple, list):
        return type(value)(_readable(part, contiguous=contiguous) for part in value)
    if isinstance(value, Mapping):
        return {name: _readable(part, contiguous=contiguous) for name, part in value.items()}
    return value
