"""The one distance between outputs, and the one way to make a network whose numbers hide no mistake."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def relative_error(model: nn.Module, reference: nn.Module, probe: Tensor) -> tuple[float, ...]:
    """Largest difference over largest reference value, for each output level; NaN where either is not finite.

    If any parameter is NaN or infinite, every level is NaN: a probe that is small for a kernel does not reach its rim.
    Both models run as they are (mode, dtype, device), without autocast and without TF32.

    Args:
        model: the model to judge.
        reference: the model that is right.
        probe: the input, on the device of both, usually ``(N, 3, H, W)``.

    Raises:
        ValueError: the models return different numbers of levels or different shapes, or empty tensors.
    """
    with _full_precision(probe.device.type):
        outputs, references = outputs_of(model(probe)), outputs_of(reference(probe))
    errors = distances(outputs, references)
    return errors if _is_finite(model) and _is_finite(reference) else (math.nan,) * len(errors)


def distances(outputs: Sequence[Tensor], references: Sequence[Tensor]) -> tuple[float, ...]:
    """The ``distance`` of each output level.

    Raises:
        ValueError: the numbers of levels, or the shapes, differ, or there is an empty tensor.
    """
    if [x.shape for x in outputs] != [x.shape for x in references]:
        raise ValueError(
            f'outputs of shapes {[tuple(x.shape) for x in outputs]} cannot be compared with '
            f'{[tuple(x.shape) for x in references]}: the models must agree in levels and shapes'
        )
    if any(not x.numel() for x in outputs):
        raise ValueError(f'empty outputs, of shapes {[tuple(x.shape) for x in outputs]}: take a larger input')
    return tuple(distance(a, b) for a, b in zip(outputs, references, strict=True))


def distance(value: Tensor, reference: Tensor) -> float:
    """Largest difference over largest reference value, or the difference itself where that is 0; NaN as above."""
    reference = reference.detach().double()
    difference = (value.detach().to(reference.device).double() - reference).abs().max().item()
    scale = reference.abs().max().item()
    if not math.isfinite(difference):
        return math.nan
    return difference / scale if scale else difference


def worst(errors: Iterable[float]) -> float:
    """The largest error; NaN where any is."""
    errors = tuple(errors)
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def all_within(errors: Sequence[float], tolerance: float) -> bool:
    """Whether every error is a number not above the tolerance; NaN and no errors at all never pass."""
    return bool(errors) and all(error <= tolerance for error in errors)


def outputs_of(output: object) -> list[Tensor]:
    """The tensors in what a network returns: one, or (nested) lists and dicts of them.

    Raises:
        TypeError: there is something else among them.
    """
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, Sequence) and not isinstance(output, str):
        return [tensor for item in output for tensor in outputs_of(item)]
    raise TypeError(f'cannot compare outputs of type {type(output).__name__}: need tensors or nested lists of them')


@torch.no_grad()
def randomize(network: nn.Module, *, seed: int = 0, image: Tensor | None = None) -> nn.Module:
    """Give norms, biases and layer scales, in place, values that no fusing mistake survives; fresh ones hide them all.

    Args:
        network: the network, which is returned.
        seed: of the values.
        image: with it the network runs once, and norms divide by more where activations would outgrow half precision.
    """
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor: Tensor | None, low: float, high: float) -> None:
        if tensor is not None:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        fill(norm.weight, 0.5, 1.5)
        fill(norm.bias, -0.5, 0.5)
        fill(norm.running_mean, -0.5, 0.5)
        fill(norm.running_var, 0.5, 2.0)
    done = {id(parameter) for norm in norms for parameter in norm.parameters()}
    for parameter in network.parameters():
        constant = parameter.numel() > 1 and bool(parameter.min() == parameter.max())
        if constant and id(parameter) not in done:
            fill(parameter, *((-0.1, 0.1) if parameter.flatten()[0] == 0 else (0.1, 0.3)))  # biases; layer scales
    if image is not None:
        hooks = [norm.register_forward_pre_hook(_tame) for norm in norms]
        network(image)
        for hook in hooks:
            hook.remove()
    return network


def _tame(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if isinstance(norm.running_var, Tensor):
        norm.running_var.mul_(max(1.0, inputs[0].var().item()))


def _is_finite(model: nn.Module) -> bool:
    return all(parameter.isfinite().all() for parameter in model.parameters())


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
