"""Norms, activations and depthwise convolutions from config dicts and sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

if hasattr(torch.compiler, 'is_compiling'):
    from torch.compiler import is_compiling
else:  # torch before 2.3
    from torch._dynamo import is_compiling

Config = Mapping[str, Any]

# These need torch alone; every other type goes through mmcv's registries.
NORMS: dict[str, type[nn.Module]] = {'BN': nn.BatchNorm2d, 'SyncBN': nn.SyncBatchNorm}
ACTIVATIONS: dict[str, type[nn.Module]] = {'GELU': nn.GELU, 'ReLU': nn.ReLU}


def build_norm(cfg: Config, channels: int) -> nn.Module:
    """The norm layer that a ``norm_cfg`` names; ``requires_grad`` and the norm's own arguments are honoured.

    Raises:
        ValueError: it is no dict with a type, or the type is unknown.
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
        ValueError: it is no dict with a type, or the type is unknown.
    """
    options = _options(cfg, name='act_cfg', known=ACTIVATIONS)
    activation = ACTIVATIONS.get(options.pop('type'))
    if activation is None:
        from mmcv.cnn import build_activation_layer

        with _known_type(cfg, name='act_cfg', known=ACTIVATIONS):
            return build_activation_layer(dict(cfg))
    return activation(**options)


class OverwritingGELU(nn.GELU):
    """GELU that writes over its input wherever nobody can read that again."""

    def forward(self, x: Tensor) -> Tensor:
        if not may_overwrite(x):
            return super().forward(x)
        return torch.ops.aten.gelu_(x, approximate=self.approximate)


def overwriting(layers: nn.Sequential) -> nn.Sequential:
    """The same layers, with a GELU that overwrites the output of the convolution before it."""
    return nn.Sequential(*(
        OverwritingGELU(layer.approximate) if type(layer) is nn.GELU else layer for layer in layers
    )).train(layers.training)  # fmt: skip


def may_overwrite(x: Tensor) -> bool:
    """Whether a layer's fresh output may be written over: not for autograd, and not in a graph that is being captured.

    Compilers and exporters fuse and place buffers themselves.
    """
    return not (x.requires_grad or torch.jit.is_tracing() or is_compiling())


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
    return nn.Conv2d(
        channels, channels * expansion, kernel_size, stride, padding, dilation, groups=channels, bias=bias
    )


def _options(cfg: Config, *, name: str, known: Mapping[str, type[nn.Module]]) -> dict[str, Any]:
    if not isinstance(cfg, Mapping) or not isinstance(cfg.get('type'), str | type):
        raise ValueError(f'{name}={cfg!r} must be a dict with a type, such as dict(type={next(iter(known))!r})')
    return dict(cfg)


@contextmanager
def _known_type(cfg: Config, *, name: str, known: Mapping[str, type[nn.Module]]) -> Iterator[None]:
    """Within, mmcv builds a layer of a type that is not ours."""
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f'{name} type {cfg["type"]!r} is unknown: take one of {", ".join(known)}, or one of mmcv'
        ) from error
