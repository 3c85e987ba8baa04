"""How far two models are apart on a probe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@torch.no_grad()
def relative_error(model: nn.Module, reference: nn.Module, probe: Tensor) -> tuple[float, ...]:
    """Largest difference over largest reference value, for each output level; NaN where either has one.

    A parameter that is no number makes all levels NaN: a probe that is small for a kernel does not reach its rim. Both
    models run as they are (mode, dtype, device), without autocast and without TF32.

    Args:
        model: the model to judge.
        reference: the model that is right.
        probe: the input, on the device of both, usually ``(N, 3, H, W)``.

    Raises:
        ValueError: the models return different numbers of levels or different shapes, or empty tensors.
    """
    with _full_precision(probe.device.type):
        outputs, references = _tensors(model(probe)), _tensors(reference(probe))
    if [x.shape for x in outputs] != [x.shape for x in references]:
        raise ValueError(
            f'outputs of shapes {[tuple(x.shape) for x in outputs]} cannot be compared with '
            f'{[tuple(x.shape) for x in references]}: the models must agree in levels and shapes'
        )
    if any(not x.numel() for x in outputs):
        raise ValueError(f'a probe of shape {tuple(probe.shape)} gives empty outputs: take a larger one')
    if not (_numbers(model) and _numbers(reference)):
        return (math.nan,) * len(outputs)
    return tuple(_distance(a, b) for a, b in zip(outputs, references, strict=True))


def _numbers(model: nn.Module) -> bool:
    return all(parameter.isfinite().all() for parameter in model.parameters())


def within(errors: Sequence[float], tolerance: float) -> bool:
    """Whether every error is a number not above the tolerance; NaN and no errors at all never pass."""
    return bool(errors) and all(error <= tolerance for error in errors)


def _distance(value: Tensor, reference: Tensor) -> float:
    value, reference = value.double(), reference.double()
    difference = (value - reference).abs().max().item()
    scale = reference.abs().max().item()
    if math.isnan(difference) or math.isinf(scale):  # inf - finite, or a difference of infinities
        return math.nan
    return difference / scale if scale else difference


def _tensors(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, Sequence):
        return [tensor for item in output for tensor in _tensors(item)]
    raise TypeError(f'cannot compare outputs of type {type(output).__name__}: need tensors or nested lists of them')


@contextmanager
def _full_precision(device_type: str) -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    torch.set_float32_matmul_precision('highest')
    try:
        with (
            cudnn.flags(enabled=cudnn.enabled, benchmark=False, allow_tf32=False),
            torch.autocast(device_type, enabled=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
