"""Norms, activations and depthwise convolutions from config dicts and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

Config = Mapping[str, Any]

# These need torch alone; every other type goes through mmcv's registries.
NORMS: dict[str, type[nn.Module]] = {'BN': nn.BatchNorm2d, 'SyncBN': nn.SyncBatchNorm}
ACTIVATIONS: dict[str, type[nn.Module]] = {'GELU': nn.GELU, 'ReLU': nn.ReLU}


def build_norm(cfg: Config, channels: int) -> nn.Module:
    """The norm layer that a ``norm_cfg`` names; ``requires_grad`` and the norm's own arguments are honoured."""
    options = dict(cfg)
    norm = NORMS.get(options.pop('type', ''))
    if norm is None:
        from mmcv.cnn import build_norm_layer

        return build_norm_layer(dict(cfg), channels)[1]
    requires_grad = options.pop('requires_grad', True)
    return norm(channels, **options).requires_grad_(requires_grad)


def build_activation(cfg: Config) -> nn.Module:
    """The activation that an ``act_cfg`` names."""
    options = dict(cfg)
    activation = ACTIVATIONS.get(options.pop('type', ''))
    if activation is None:
        from mmcv.cnn import build_activation_layer

        return build_activation_layer(dict(cfg))
    return activation(**options)


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
