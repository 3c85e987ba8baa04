"""Frozen batch norms: affine maps in any mode, which several libraries have each under the same name."""

from __future__ import annotations

import copy
import weakref
from typing import cast

import torch
from torch import Tensor, nn

from repnext_mm.reparam.kernel import Affine, affine_of, is_frozen_norm

USUAL_EPS = 1e-5  # of classes that write it down in their forward only
_NUMBERS = ('weight', 'bias', 'running_mean', 'running_var')
_judged: weakref.WeakKeyDictionary[type[nn.Module], bool] = weakref.WeakKeyDictionary()


def is_frozen(norm: nn.Module) -> bool:
    """Whether a layer is a frozen batch norm: by its name, and by what its class makes of its numbers."""
    if is_frozen_norm(norm):
        return True
    if not looks_frozen(norm):
        return False
    kind = type(norm)
    if kind not in _judged:
        _judged[kind] = _is_affine(norm)
    return _judged[kind]


def looks_frozen(norm: nn.Module) -> bool:
    """Whether a layer is called a frozen batch norm and has its numbers."""
    named = 'Frozen' in type(norm).__name__ and 'BatchNorm' in type(norm).__name__
    return named and all(isinstance(getattr(norm, name, None), Tensor) for name in _NUMBERS)


def read_affine(norm: nn.Module) -> Affine:
    """The affine map of a batch norm with fixed statistics, frozen or in eval mode."""
    if is_frozen_norm(norm) or not looks_frozen(norm):
        return affine_of(norm)
    weight, bias, mean, variance = (cast(Tensor, getattr(norm, name)) for name in _NUMBERS)
    scale = weight * (variance + cast(float, getattr(norm, 'eps', USUAL_EPS))).rsqrt()
    return Affine(scale, bias - mean * scale)


def _is_affine(norm: nn.Module) -> bool:
    """Whether a layer does what ``read_affine`` says, up to what stands behind it (``drop`` and ``act``)."""
    layer = copy.deepcopy(norm)
    if any(tensor.is_meta for tensor in (*layer.parameters(), *layer.buffers())):
        return False
    layer.to('cpu', torch.float64)
    generator = torch.Generator().manual_seed(0)
    for name in _NUMBERS:
        tensor = cast(Tensor, getattr(layer, name))
        tensor.data.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5)
    x = torch.randn(2, len(cast(Tensor, layer.running_var)), 3, 2, generator=generator, dtype=torch.float64)
    scale, shift = read_affine(layer)
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
