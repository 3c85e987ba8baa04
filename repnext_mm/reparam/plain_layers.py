"""What is nothing but a convolution, and what is nothing but a batch norm: classes may do more than their base does."""

from __future__ import annotations

from typing import cast

from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _BatchNorm

from .kernel import Kernel, folds, is_frozen_norm, placed, to_conv
from .surgery import skeleton

_CONV_FORWARDS = tuple((kind.forward, kind._conv_forward) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d))
_NORM_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
_PLAIN_FORWARDS = frozenset((*_CONV_FORWARDS, *((forward, None) for forward in (*_NORM_FORWARDS, nn.Linear.forward))))

_PADDING_CONVS = (('mmcv', 'Conv2dAdaptivePadding'), ('timm', 'Conv2dSame'))
"""Convolutions with a ``forward`` that pads as TensorFlow does, and then convolves."""

_ACTIVATING_NORMS = (('timm', 'BatchNormAct2d'),)
"""Batch norms with a ``forward`` that goes on with ``drop`` and ``act``."""


def is_plain(layer: nn.Module) -> bool:
    """Whether calling a convolution, linear layer or batch norm is what its class makes of its weight and bias.

    Only then may the weights be read instead. It is not so where other code takes part: in a class that does more
    (adapters, fake quantization, wrappers that answer for what they hold), or on the instance (see ``is_intercepted``:
    pruning and the older ``weight_norm`` and ``spectral_norm`` work by hooks). Parametrized layers are plain: reading
    their weight evaluates it.
    """
    kind = type(layer)
    forwards = (kind.forward, getattr(kind, '_conv_forward', None))
    return (forwards in _PLAIN_FORWARDS or is_frozen_norm(layer)) and not is_intercepted(layer)


def is_intercepted(module: nn.Module) -> bool:
    """Whether calling a module runs more or other code than the ``forward`` of its class: to be called, not read.

    That are hooks of any kind, an attribute in the place of a method, and ``compile()`` in place.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or getattr(module, '_compiled_call_impl', None) is not None
        or type(module).__call__ is not nn.Module.__call__
        or 'forward' in module.__dict__
        or '_conv_forward' in module.__dict__
    )


def hooks_of_all_modules() -> bool:
    """Whether hooks are registered for every module there is, but for PyTorch's own, which count what runs.

    A fused network has them too: they do not bar fusing.
    """
    return any(
        not getattr(hook, '__module__', '').startswith('torch.')
        for hooks in (
            torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks,
            torch_module._global_backward_hooks, torch_module._global_backward_pre_hooks,
        )
        if hooks
        for hook in hooks.values()
    )  # fmt: skip


def why_intercepted(module: nn.Module) -> str:
    """What ``is_intercepted`` found, for people; empty where it found nothing."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return 'it has hooks, which would not run'
    if getattr(module, '_compiled_call_impl', None) is not None:
        return 'it was compiled in place'
    for name in ('forward', '_conv_forward'):
        if name in vars(module):
            return f'its {name} was replaced'
    return '' if type(module).__call__ is nn.Module.__call__ else f'its class {type(module).__name__} has a __call__'


def why_called(layer: nn.Module) -> str:
    """Why a layer is not plain, for people; empty where it is."""
    if is_plain(layer):
        return ''
    return why_intercepted(layer) or f'its class {type(layer).__name__} may do more than its weight and bias say'


def is_convolution(module: nn.Module) -> bool:
    """Whether the output of a layer is linear in its weight and bias, without hooks that could change it."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) or has_hooks(module):
        return False
    return _is_plain(module) or _kind(module) in _PADDING_CONVS


def with_kernel(conv: nn.Module, kernel: Kernel) -> nn.Module:
    """A layer as ``conv`` with another weight and bias, which need no gradient."""
    like = cast(nn.Conv2d, conv)
    if _is_plain(conv):
        return to_conv(kernel, like=like)
    clone = cast(nn.Conv2d, skeleton(conv)[0])
    for name, tensor in kernel._asdict().items():
        setattr(clone, name, nn.Parameter(placed(tensor, like=like.weight), requires_grad=False))
    return clone


def is_norm(module: nn.Module) -> bool:
    """Whether a layer is a batch norm in eval mode, possibly with something known behind it, without hooks."""
    return folds(module) and not has_hooks(module) and behind(module) is not None


def behind(norm: nn.Module) -> nn.Module | None:
    """What remains of a norm layer when its norm is folded; None when that is not known."""
    if type(norm).forward in _NORM_FORWARDS:
        return nn.Identity()
    if _kind(norm) not in _ACTIVATING_NORMS:
        return None
    layers = [layer for layer in cast(list[nn.Module], [norm.drop, norm.act]) if not isinstance(layer, nn.Identity)]
    return nn.Sequential(*layers) if layers else nn.Identity()


def has_hooks(module: nn.Module) -> bool:
    """Whether other code takes part in the forward pass of a module."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _is_plain(conv: nn.Module) -> bool:
    return (type(conv).forward, getattr(type(conv), '_conv_forward', None)) in _CONV_FORWARDS


def _kind(module: nn.Module) -> tuple[str, str]:
    return type(module).__module__.partition('.')[0], type(module).__name__
