"""Layers from config dicts and sizes, and what writes over memory in place of asking for more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module

from repnext_mm.errors import UserError
from repnext_mm.reparam.plain_layers import hooks_of_all_modules, is_intercepted, is_plain, why_intercepted

if hasattr(torch.compiler, 'is_compiling'):
    from torch.compiler import is_compiling
else:  # torch before 2.3
    from torch._dynamo import is_compiling

Config = Mapping[str, Any]

# These need torch alone; every other type goes through mmcv's registries.
NORMS: dict[str, type[nn.Module]] = {'BN': nn.BatchNorm2d, 'SyncBN': nn.SyncBatchNorm}
ACTIVATIONS: dict[str, type[nn.Module]] = {'GELU': nn.GELU, 'ReLU': nn.ReLU}


def build_norm(cfg: Config, channels: int) -> nn.Module:
    """The norm layer that a ``norm_cfg`` names; ``requires_grad`` and the norm's own arguments are honored.

    Raises:
        ValueError: it is not a dict with a type, or the type is unknown.
    """
    options = _options(cfg, name='norm_cfg', known=NORMS)
    norm = NORMS.get(options.pop('type'))
    if norm is None:
        from mmcv.cnn import build_norm_layer

        with _known_type(cfg, name='norm_cfg', known=NORMS):
            return build_norm_layer(dict(cfg), channels)[1]
    requires_grad = options.pop('requires_grad', True)
    return norm(channels, **options).requires_grad_(requires_grad)


def build_activation(cfg: Config) -> nn.Module:
    """The activation that an ``act_cfg`` names.

    Raises:
        ValueError: it is not a dict with a type, or the type is unknown.
    """
    options = _options(cfg, name='act_cfg', known=ACTIVATIONS)
    activation = ACTIVATIONS.get(options.pop('type'))
    if activation is None:
        from mmcv.cnn import build_activation_layer

        with _known_type(cfg, name='act_cfg', known=ACTIVATIONS):
            return build_activation_layer(dict(cfg))
    return activation(**options)


def stochastic_depth(rate: float) -> nn.Module:
    """What drops a residual branch per sample; the identity at rate 0, which needs no torchvision."""
    if not rate:
        return nn.Identity()
    from torchvision.ops import StochasticDepth

    return StochasticDepth(rate, mode='row')


def why_not_dropped(drop_path: nn.Module | None) -> str:
    """Why fusing may not omit what stands where a branch is dropped in training, for people; empty where it may.

    Of stochastic depth, nothing is left in eval mode.
    """
    if drop_path is None:
        return ''
    if type(drop_path) is nn.Identity or type(drop_path).__name__ in ('StochasticDepth', 'DropPath'):
        return why_intercepted(drop_path)
    return f'its class {type(drop_path).__name__} is not stochastic depth'


def called_one_by_one(x: Tensor) -> bool:
    """Whether every layer has to be called whatever it is: somebody records or counts the calls.

    These are ``torch.fx`` (``x`` is then a proxy), ``torch.jit.trace``, which makes tensors of sizes, and hooks of all
    modules.
    """
    return isinstance(x, fx.Proxy) or torch.jit.is_tracing() or hooks_of_all_modules()


class OverwritingSequential(nn.Sequential):
    """Layers one after the other, where a GELU writes over the output of the layer before it."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # scripts write over nothing
            for layer in self:
                x = layer(x)
            return x
        before: nn.Module | None = None
        for layer in self:
            x = gelu(x, layer, made_by=before) if type(layer) is nn.GELU else layer(x)
            before = layer
        return x


def overwriting(layers: nn.Sequential) -> OverwritingSequential:
    """The same layers, with a GELU that overwrites the output of the layer before it."""
    new = OverwritingSequential(*layers)
    new.training = layers.training  # not train(), which would change the layers, and the source has them too
    return new


def gelu(x: Tensor, act: nn.GELU, *, made_by: nn.Module | None) -> Tensor:
    """``act(x)``, written over ``x`` where ``may_overwrite``: the same numbers, with less memory to fetch."""
    if may_overwrite(x, made_by) and not is_intercepted(act):
        return torch.ops.aten.gelu_(x, approximate=act.approximate)
    return act(x)


def add_shortcut(y: Tensor, shortcut: Tensor, *, made_by: nn.Module) -> Tensor:
    """``y + shortcut``, written over ``y`` where ``may_overwrite``."""
    return y.add_(shortcut) if may_overwrite(y, made_by) and y.dtype == shortcut.dtype else y + shortcut


def may_overwrite(x: Tensor, made_by: nn.Module | None) -> bool:
    """Whether a tensor may be written over: the fresh output of a plain layer, which nobody else has or will read.

    Not for autograd, not where a hook has seen it, and not in a graph that is being captured: compilers and exporters
    fuse and place buffers themselves.

    Args:
        x: the tensor.
        made_by: the layer that returned it; None when it is not fresh.
    """
    if isinstance(x, fx.Proxy) or x.requires_grad or torch.jit.is_tracing() or is_compiling():
        return False
    while isinstance(made_by, nn.Sequential) and _is_a_chain(made_by):
        made_by = made_by[-1]
    return made_by is not None and is_plain(made_by) and not torch_module._global_forward_hooks


def _is_a_chain(layers: nn.Sequential) -> bool:
    return type(layers) in (nn.Sequential, OverwritingSequential) and not is_intercepted(layers)


def geometry(conv: nn.Module) -> tuple[object, ...]:
    """All of a convolution but its weights and its channels; empty for other layers."""
    if not isinstance(conv, nn.Conv2d):
        return ()
    return conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode


def as_built(layer: nn.Module) -> tuple[tuple[object, ...], bool]:
    """What ``why_not_as_built`` compares with later: the geometry, and whether there is a bias."""
    return geometry(layer), getattr(layer, 'bias', None) is not None


def why_not_as_built(layer: nn.Module, built: tuple[tuple[object, ...], bool]) -> str:
    """How a layer differs from what was built: one that was built without a bias may begin a chain; empty if it is."""
    if geometry(layer) != built[0]:
        return 'its geometry was changed'
    return '' if built[1] or getattr(layer, 'bias', None) is None else 'it was given a bias'


def depthwise(
    channels: int,
    kernel_size: tuple[int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    dilation: int = 1,
    expansion: int = 1,
    bias: bool = True,
) -> nn.Conv2d:
    """A depthwise convolution with the padding that keeps the size at stride 1."""
    padding = ((kernel_size[0] - 1) * dilation // 2, (kernel_size[1] - 1) * dilation // 2)
    return nn.Conv2d(channels, channels * expansion, kernel_size, stride, padding, dilation, groups=channels, bias=bias)


def _options(cfg: Config, *, name: str, known: Mapping[str, type[nn.Module]]) -> dict[str, Any]:
    if not isinstance(cfg, Mapping) or not isinstance(cfg.get('type'), str | type):
        raise UserError(f'{name}={cfg!r} must be a dict with a type, such as dict(type={next(iter(known))!r})')
    return dict(cfg)


@contextmanager
def _known_type(cfg: Config, *, name: str, known: Mapping[str, type[nn.Module]]) -> Iterator[None]:
    """Within, mmcv builds a layer of a type that is not ours."""
    try:
        yield
    except KeyError as error:
        raise UserError(
            f'{name} type {cfg["type"]!r} is unknown: take one of {", ".join(known)}, or one of mmcv'
        ) from error
