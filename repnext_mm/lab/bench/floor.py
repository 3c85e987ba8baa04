"""The least time that a network's 1x1 convolutions need, at the rate of plain stacks of them that are timed beside it.

RepNeXt and its peers spend most of their arithmetic there, and no form, fusing or layout changes it. What a network
takes above this floor is norms, activations, depthwise convolutions, copies, and 1x1 convolutions of less convenient
sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from repnext_mm.lab.bench.networks import like, memory_format_of

STACKS = ((192, 32), (384, 32))
"""Channels, and the side of the image in pixels, of stacks to find the rate with: the best counts."""
LAYERS = 6


def stack_of(channels: int, size: int, *, image: Tensor) -> tuple[nn.Module, Tensor]:
    """``LAYERS`` 1x1 convolutions, and their input, (N, channels, size, size) of the dtype and layout of ``image``."""
    layout = memory_format_of(image)
    images = torch.randn(len(image), channels, size, size).to(image.device, image.dtype, memory_format=layout)
    return like(nn.Sequential(*(nn.Conv2d(channels, channels, 1) for _ in range(LAYERS))), images), images


@torch.no_grad()
def pointwise_macs(network: nn.Module, image: Tensor) -> int:
    """Multiply-accumulates of the dense 1x1 convolutions that a network runs on ``image``."""
    counts: list[int] = []

    def count(module: nn.Module, inputs: object, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        counts.append(output.numel() * module.in_channels)

    handles = [
        module.register_forward_hook(count)
        for module in network.modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    ]
    try:
        network(image)
    finally:
        for handle in handles:
            handle.remove()
    return sum(counts)


def floor_ms(macs: int | None, stacks: Sequence[Mapping[str, Any]]) -> float | None:
    """Milliseconds that ``macs`` take at the best rate of the stacks of the same process; None where none was timed."""
    rates = [stack['macs'] / median(stack['times_ms']) for stack in stacks if stack.get('times_ms')]
    return macs / max(rates) if macs is not None and rates else None
