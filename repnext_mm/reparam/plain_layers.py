"""What is nothing but a convolution, and what is nothing but a batch norm: classes may do more than their base does."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import lru_cache
from inspect import getattr_static
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from repnext_mm.reparam.kernel import Kernel, is_affine, is_frozen, is_frozen_norm, placed
from repnext_mm.reparam.surgery import sealed, skeleton

_CONV_FORWARDS = tuple((kind.forward, kind._conv_forward) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d))
_NORM_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
_PLAIN_FORWARDS = frozenset((*_CONV_FORWARDS, *((forward, None) for forward in (*_NORM_FORWARDS, nn.Linear.forward))))

_NUMBERS = ('weight', 'bias', 'running_mean', 'running_var')
DEFINING_METHODS = ('forward', 'branches', 'kernel', 'branch_kernels', 'convolved')
_KNOWN = frozenset({nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm})
_TENSORS = frozenset({Tensor, nn.Parameter, type(None)})

_PADDING_CONVS = (('mmcv', 'Conv2dAdaptivePadding'), ('timm', 'Conv2dSame'))
"""Convolutions with a ``forward`` that pads as TensorFlow does, and then convolves."""

_WRAPPED_LAYERS = tuple(('mmcv', kind) for kind in ('Conv2d', 'Conv3d', 'ConvTranspose2d', 'ConvTranspose3d', 'Linear'))
"""Layers with a ``forward`` that does something else for old versions of PyTorch only."""

_LINEAR_MAPS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
_LINEAR_FORWARDS = frozenset((kind.forward, getattr(kind, '_conv_forward', None)) for kind in _LINEAR_MAPS)

_ACTIVATING_NORMS = (('timm', 'BatchNormAct2d'), ('timm', 'FrozenBatchNormAct2d'))
"""Batch norms with a ``forward`` that goes on with ``drop`` and ``act``."""

_AVERAGES = (
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.Upsample,
)
"""Layers whose every output is an average of inputs of its channel, with weights that sum to 1."""

_USUAL_ATTRIBUTES = frozenset(vars(nn.Module()))
_DIMENSION = (
    'a layer has absorbed the batch norm here for inputs of another dimension: fuse the model with '
    'fuse(model, probe=x), x being an input as it comes'
)


def is_plain(layer: nn.Module) -> bool:
    """Whether calling a convolution, linear layer or batch norm is what its class makes of its weight and bias.

    Only then may the weights be read instead. It is not so where other code takes part: in a class that does more
    (adapters, fake quantization, wrappers that answer for what they hold), on the instance (see ``is_intercepted``:
    pruning and the older ``weight_norm`` and ``spectral_norm`` work by hooks), or in the weights, when they are tensors
    that compute in their own way. Parametrized layers are plain: reading their weight evaluates it.
    """
    return _computes_as_usual(layer) and not is_intercepted(layer) and not _reading_differs(layer)


def is_intercepted(module: nn.Module) -> bool:
    """Whether calling a module runs more or other code than the ``forward`` of its class: to be called, not read.

    These are hooks of any kind, an attribute in the place of a method, and ``compile()`` in place.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or getattr(module, '_compiled_call_impl', None) is not None
        or type(module).__call__ is not nn.Module.__call__
        or type(module)._call_impl is not nn.Module._call_impl
        or 'forward' in module.__dict__
        or '_conv_forward' in module.__dict__
        or '_call_impl' in module.__dict__
        or why_not_as_written(module)
    )


def why_not_as_written(module: nn.Module) -> str:
    """What takes the place of a method by which a ``Fusible`` defines its output, in words; empty for other modules."""
    kind: Any = type(module)
    if not hasattr(kind, 'overridden_method'):
        return ''
    if kind.overridden_method:
        return f'its class {kind.__name__} overrides {kind.overridden_method}() alone, of which fused() does not know'
    if written_methods(kind) != kind.methods_as_written:
        return f'the methods of its class {kind.__name__} were replaced'
    for name in DEFINING_METHODS:
        if name in module.__dict__:
            return f'its {name} was replaced'
    return ''


def written_methods(kind: type) -> tuple[object, ...]:
    """The functions by which a ``Fusible`` class defines its output, as they are now."""
    return tuple(getattr(kind, name, None) for name in DEFINING_METHODS)


def hooks_of_all_modules() -> bool:
    """Whether hooks are registered for every module there is, but for PyTorch's own, which count what runs.

    A fused network has them too: they do not bar fusing.
    """
    return any(
        not getattr(hook, '__module__', '').startswith('torch.')
        for hooks in (
            torch_module._global_forward_hooks,
            torch_module._global_forward_pre_hooks,
            torch_module._global_backward_hooks,
            torch_module._global_backward_pre_hooks,
        )
        if hooks
        for hook in hooks.values()
    )


def why_intercepted(module: nn.Module) -> str:
    """What ``is_intercepted`` found, as words for a report; empty where it found nothing."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return 'it has hooks, which would not run'
    if getattr(module, '_compiled_call_impl', None) is not None:
        return 'it was compiled in place'
    for name in ('forward', '_conv_forward', '_call_impl'):
        if name in vars(module):
            return f'its {name} was replaced'
    if not _is_called_as_usual(type(module)):
        return f'its class {type(module).__name__} has a __call__'
    return why_not_as_written(module)


def why_called(layer: nn.Module) -> str:
    """Why a layer is not plain, as words for a report; empty where it is."""
    if is_plain(layer):
        return ''
    if not (reason := why_intercepted(layer)) and not _computes_as_usual(layer):
        return f'its class {type(layer).__name__} may do more than its weight and bias say'
    return reason or _reading_differs(layer)


def is_linear_map(module: nn.Module) -> bool:
    """Whether the class of a layer makes an output of it that is linear in its weight and bias, and nothing else."""
    kind = type(module)
    if not isinstance(module, _LINEAR_MAPS) or not _is_called_as_usual(kind):
        return False
    if is_lazy(module.weight):
        return False
    forwards = (kind.forward, getattr(kind, '_conv_forward', None))
    return forwards in _LINEAR_FORWARDS or _kind(module) in (*_PADDING_CONVS, *_WRAPPED_LAYERS)


def is_norm(module: nn.Module) -> bool:
    """Whether the class of a layer makes it a batch norm with fixed statistics, maybe with something known behind it.

    What happens on the instance does not count here; see ``on_the_instance``.
    """
    if sealed(module) or not _is_called_as_usual(type(module)):
        return False
    known = (is_affine(module) or is_frozen(module)) and behind(module) is not None
    return known and not any(is_lazy(tensor) for tensor in module.buffers(recurse=False))


def on_the_instance(module: nn.Module) -> str:
    """What makes this very module do other things than its class says, in words; empty where nothing does."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return 'it has hooks, which would not run'
    if getattr(module, '_compiled_call_impl', None) is not None:
        return 'it was compiled in place'
    if sealed(module):
        return ''
    if (is_linear_map(module) or is_norm(module)) and (reason := _reading_differs(module)):
        return reason
    further = vars(module).keys() - _USUAL_ATTRIBUTES
    own = sorted(name for name in further if isinstance(getattr_static(type(module), name, None), FunctionType))
    return f'its {own[0]} was replaced' if own else ''


def axes(layer: nn.Module) -> int:
    """How many axes of its input a layer moves along: 2 for an image, 0 for a linear layer."""
    return cast(Tensor, layer.weight).dim() - 2


def channels(layer: nn.Module) -> int:
    """How many channels a layer returns."""
    return cast(int, layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def features(norm: nn.Module) -> int:
    """How many channels a norm has."""
    return len(cast(Tensor, norm.running_var))


def sees_no_border(layer: nn.Module) -> bool:
    """Whether a layer reads nothing but what it is given: it does not pad, or with values of its input."""
    if isinstance(layer, nn.Linear):
        return True
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return False
    if all(size == 1 for size in layer.kernel_size) and (_kind(layer) in _PADDING_CONVS or layer.padding == 'same'):
        return True
    if _kind(layer) in _PADDING_CONVS:
        return False
    if layer.padding_mode != 'zeros' or layer.padding == 'valid':
        return True
    return not isinstance(layer.padding, str) and not any(layer.padding)


def passes_through(module: nn.Module) -> bool:
    """Whether a layer returns what it is given: ``Identity``, and dropout in eval mode."""
    dropout = isinstance(module, _DropoutNd) and not module.training and type(module).__module__.startswith('torch.nn')
    return (dropout or type(module) in (nn.Identity, OfDimension)) and not on_the_instance(module)


def averages(module: nn.Module) -> bool:
    """Whether a layer returns, per channel, averages of what it is given: an affine map may come before or after it."""
    if isinstance(module, _AVERAGES) and type(module).__module__.startswith('torch.nn'):
        padded = module.padding not in (0, (0,), (0, 0), (0, 0, 0)) if hasattr(module, 'padding') else False
        counted = padded and module.count_include_pad
        return not counted and not getattr(module, 'divisor_override', None) and not on_the_instance(module)
    return False


class OfDimension(nn.Identity):
    """What a norm leaves behind where another layer has absorbed it, which is exact for inputs of one dimension only.

    A batch norm takes ``(N, C)`` and ``(N, C, L)``, and a linear layer returns its channels in the last place.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.dim() == self.dimension, _DIMENSION)
        return x

    def extra_repr(self) -> str:
        return str(self.dimension)


def with_kernel(layer: nn.Module, kernel: Kernel) -> nn.Module:
    """A layer as ``layer``, of its class and with its attributes, with a weight and bias that need no gradient."""
    clone = skeleton(layer)[0]
    if is_parametrized(layer):
        clone.__class__ = type(layer).__bases__[0]
        del clone._modules['parametrizations']
    like = cast(Tensor, layer.weight)
    values = {
        name: None if tensor is None else nn.Parameter(placed(tensor, like=like), requires_grad=False)
        for name, tensor in kernel._asdict().items()
    }
    for name in values:  # a tensor may stand in another place than a parameter: what pruning or functorch leaves
        vars(clone).pop(name, None)
        clone._buffers.pop(name, None)
    clone._parameters.update(values)
    return clone


def behind(norm: nn.Module) -> nn.Module | None:
    """What remains of a norm layer when its norm is folded; None when that is not known."""
    if type(norm).forward in _NORM_FORWARDS:
        return nn.Identity()
    if _kind(norm) not in _ACTIVATING_NORMS:
        return nn.Identity() if is_frozen(norm) else None
    layers = [layer for layer in cast(list[nn.Module], [norm.drop, norm.act]) if not isinstance(layer, nn.Identity)]
    return nn.Sequential(*layers) if layers else nn.Identity()


def _computes_as_usual(layer: nn.Module) -> bool:
    kind = type(layer)
    forwards = (kind.forward, getattr(kind, '_conv_forward', None))
    return forwards in _PLAIN_FORWARDS or is_frozen_norm(layer)


def _is_called_as_usual(kind: type[nn.Module]) -> bool:
    return kind.__call__ is nn.Module.__call__ and kind._call_impl is nn.Module._call_impl


def _reading_differs(layer: nn.Module) -> str:
    """Why what is read from a layer may not be what its ``forward`` computes with, in words; empty where it is."""
    kind = type(layer)
    known = kind in _KNOWN  # asked in every step of a training
    if not known and (
        kind.__getattribute__ != object.__getattribute__ or kind.__getattr__ is not nn.Module.__getattr__
    ):
        return f'its class {kind.__name__} answers for its attributes'
    computed: Any = layer._modules.get('parametrizations') or ()
    for name in _NUMBERS:
        if name in computed:
            continue
        if not known and hasattr(kind, name):
            return f'its class {kind.__name__} has a {name} of its own'
        value = _place_of(layer, name).get(name)
        if type(value) not in _TENSORS and not _is_usual(cast(Hashable, type(value))):
            return f'its {name} is a {type(value).__name__}, which may compute in its own way'
        if value is not None and value.layout is not torch.strided:
            return f'its {name} is not a dense tensor'
    return ''


def _place_of(layer: nn.Module, name: str) -> Mapping[str, Any]:
    """Where an attribute is found first."""
    if name in layer.__dict__:
        return layer.__dict__
    return layer._parameters if name in layer._parameters else layer._buffers


@lru_cache(maxsize=256)
def _is_usual(kind: type) -> bool:
    """Whether a kind of tensor leaves its arithmetic to PyTorch, as those do that compilers and exporters put in."""
    if not issubclass(kind, Tensor) or kind.__module__.startswith('torch._subclasses'):
        return issubclass(kind, Tensor)
    others = kind.__mro__[: kind.__mro__.index(Tensor)]
    overrides = {name for base in others if base is not nn.Parameter for name in vars(base)}
    return not overrides & {'__torch_function__', '__torch_dispatch__'}


def _kind(module: nn.Module) -> tuple[str, str]:
    return type(module).__module__.partition('.')[0], type(module).__name__
