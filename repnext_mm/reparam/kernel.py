"""Convolutions and norms as values: what the laws of re-parameterization compute with."""

from __future__ import annotations

import copy
import weakref
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

ConvT = TypeVar('ConvT', nn.Conv1d, nn.Conv2d, nn.Conv3d)
ModuleT = TypeVar('ModuleT', bound=nn.Module)


FROZEN_NORMS = frozenset({('torchvision', 'FrozenBatchNorm2d'), ('detectron2', 'FrozenBatchNorm2d')})
"""Batch norms of other libraries, by package and class, that are affine maps of ``weight`` and ``bias`` in any mode."""
USUAL_EPS = 1e-5  # of classes that write it down in their forward only
_NUMBERS = ('weight', 'bias', 'running_mean', 'running_var')
_judged: weakref.WeakKeyDictionary[type[nn.Module], bool] = weakref.WeakKeyDictionary()


class Kernel(NamedTuple):
    """A convolution (or linear layer) without its geometry."""

    weight: Tensor  # (O, I / groups, kH, kW), one k per axis; or (O, I) for a linear layer
    bias: Tensor | None  # (O,); None = structurally absent, not "zero"


class Affine(NamedTuple):
    """A norm that uses running statistics: ``x * scale + shift`` per channel."""

    scale: Tensor  # (C,)
    shift: Tensor  # (C,)


def kernel_of(layer: _ConvNd | nn.Linear) -> Kernel:
    """The kernel of a layer, as the layer's own parameters (gradients flow to them)."""
    return Kernel(layer.weight, layer.bias)


def is_affine(norm: nn.Module) -> bool:
    """Whether a norm is an affine map right now: a frozen batch norm, or one in eval mode with running statistics."""
    if isinstance(norm, _BatchNorm):
        return not norm.training and norm.running_mean is not None
    return is_frozen_norm(norm)


def is_frozen_norm(norm: nn.Module) -> bool:
    """Whether a layer is a batch norm whose statistics and weights are buffers, in training mode too."""
    return (type(norm).__module__.partition('.')[0], type(norm).__name__) in FROZEN_NORMS


def is_frozen(norm: nn.Module) -> bool:
    """Whether a layer is a frozen batch norm of any library: by its name, and by what its class makes of its numbers.

    What may stand behind it in the same class (``drop`` and ``act``) is not part of the affine map.
    """
    if is_frozen_norm(norm):
        return True
    if not looks_frozen(norm):
        return False
    kind = type(norm)
    if kind not in _judged and any(tensor.is_meta for tensor in (*norm.parameters(), *norm.buffers())):
        return False  # without numbers; the next of its class may have some
    if kind not in _judged:
        _judged[kind] = _computes_its_map(norm)
    return _judged[kind]


def looks_frozen(norm: nn.Module) -> bool:
    """Whether a layer is called a frozen batch norm and has its numbers."""
    named = 'Frozen' in type(norm).__name__ and 'BatchNorm' in type(norm).__name__
    return named and all(isinstance(getattr(norm, name, None), Tensor) for name in _NUMBERS)


def affine_of(norm: nn.Module) -> Affine:
    """The affine map of a batch norm in eval mode, or of one that ``is_frozen``; gradients flow to its weight and bias.

    Raises:
        ValueError: the norm would use batch statistics, or is not a batch norm.
    """
    if is_frozen(norm):
        return _frozen_map(norm)
    if not isinstance(norm, _BatchNorm):
        raise ValueError(f'{type(norm).__name__} is not an affine map: only batch norms fold, keep this norm as it is')
    if norm.training or norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            f'{type(norm).__name__} uses batch statistics: folding needs running statistics, call eval() first'
        )
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return Affine(scale, shift)


def refuse_training_norms(name: str, module: nn.Module) -> None:
    """Raise a ``ValueError`` when a batch norm in a module called ``name`` is in training mode."""
    for inner, norm in module.named_modules(prefix=name):
        if isinstance(norm, _BatchNorm) and norm.training:
            raise ValueError(
                f'{inner or type(norm).__name__} is in training mode: fusing bakes in running statistics, '
                'call model.eval() first'
            )


def as_float64(module: ModuleT) -> ModuleT:
    """A float64 copy on the CPU to compute kernels with, so that they do not depend on dtype or device."""
    # what is not a parameter or a buffer is not moved by to(), nor copied where it was computed
    attributes = (value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor))
    moved = {id(tensor): _as_float64(tensor) for tensor in attributes}
    clone = copy.deepcopy(module, cast(Any, moved))
    if any(parameter.is_meta for parameter in clone.parameters()):
        return clone  # shapes only
    return clone.to('cpu', torch.float64)


def _as_float64(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_meta:
        return tensor.clone()
    return tensor.to('cpu', torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=True)


def convolve(x: Tensor, kernel: Kernel, *, like: nn.Conv2d) -> Tensor:
    """Convolve ``x (N, C, H, W)`` as ``like`` does (stride, padding and its mode, dilation, groups), with a kernel.

    Under autocast on a CPU, grouped kernels larger than 3x3 compute in their own dtype, and give that of autocast: in
    bfloat16, torch's gradient of such a kernel takes three times as long, and more.
    """
    large = like.groups > 1 and max(kernel.weight.shape[2:]) > 3
    dtype = _autocast_dtype(x.device.type) if large else None
    if dtype is None:
        return like._conv_forward(x, kernel.weight, kernel.bias)
    with torch.autocast('cpu', enabled=False):
        return like._conv_forward(x.to(kernel.weight.dtype), kernel.weight, kernel.bias).to(dtype)


def _autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast has convolutions compute in on a CPU; None where it is off, and elsewhere."""
    if device != 'cpu':
        return None
    if hasattr(torch, 'get_autocast_dtype'):  # from torch 2.4 on
        return torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else None
    return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None


def to_conv(kernel: Kernel, *, like: ConvT) -> ConvT:
    """A new convolution with ``like``'s geometry, dtype, device and memory format; it needs no gradient."""
    outputs, inputs, *window = kernel.weight.shape
    conv = _CONVOLUTIONS[len(window)](
        inputs * like.groups,
        outputs,
        cast(Any, tuple(window)),
        cast(Any, like.stride),
        cast(Any, like.padding),
        cast(Any, like.dilation),
        like.groups,
        bias=kernel.bias is not None,
        padding_mode=like.padding_mode,
        device='meta',  # the values come from the kernel
    )
    conv.weight = nn.Parameter(placed(kernel.weight, like=like.weight), requires_grad=False)
    if kernel.bias is not None:
        conv.bias = nn.Parameter(placed(kernel.bias, like=like.weight), requires_grad=False)
    return cast(ConvT, conv.train(like.training))


def to_linear(kernel: Kernel, *, like: nn.Linear) -> nn.Linear:
    """A new linear layer with ``like``'s dtype and device; it needs no gradient."""
    outputs, inputs = kernel.weight.shape
    linear = nn.Linear(inputs, outputs, bias=kernel.bias is not None, device='meta')  # the values come from the kernel
    linear.weight = nn.Parameter(placed(kernel.weight, like=like.weight), requires_grad=False)
    if kernel.bias is not None:
        linear.bias = nn.Parameter(placed(kernel.bias, like=like.weight), requires_grad=False)
    return linear.train(like.training)


def placed(value: Tensor, *, like: Tensor) -> Tensor:
    """A copy of a tensor with ``like``'s dtype, device and memory format."""
    # copy=True: a fused network must never share a tensor with the branches it came from
    value = value.detach().to(like.device, like.dtype, copy=True)
    channels_last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    if value.dim() == 4 and channels_last:
        return value.contiguous(memory_format=torch.channels_last)
    return value.contiguous()


_CONVOLUTIONS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def _frozen_map(norm: nn.Module) -> Affine:
    weight, bias, mean, variance = (cast(Tensor, getattr(norm, name)) for name in _NUMBERS)
    scale = weight * (variance + cast(float, getattr(norm, 'eps', USUAL_EPS))).rsqrt()
    return Affine(scale, bias - mean * scale)


def _computes_its_map(norm: nn.Module) -> bool:
    """Whether a layer, in any mode, does what ``_frozen_map`` says, up to what stands behind it."""
    layer = copy.deepcopy(norm)
    layer.to('cpu', torch.float64)
    generator = torch.Generator().manual_seed(0)
    for name in _NUMBERS:
        tensor = cast(Tensor, getattr(layer, name))
        tensor.data.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5)
    x = torch.randn(2, len(cast(Tensor, layer.running_var)), 3, 2, generator=generator, dtype=torch.float64)
    scale, shift = _frozen_map(layer)
    expected = x * scale.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1)
    for name in ('drop', 'act'):
        if isinstance(inner := getattr(layer, name, None), nn.Module):
            expected = inner(expected)
    for training in (False, True):
        for needs_gradient in (False, True):
            layer.training = training
            with torch.set_grad_enabled(needs_gradient):
                output = layer(x.clone().requires_grad_(needs_gradient))
            if not isinstance(output, Tensor) or output.shape != x.shape:
                return False
            if not torch.allclose(output.detach(), expected.detach(), rtol=1e-12, atol=1e-12):
                return False
    return True
