"""Mixed precision in bfloat16, which a CPU has too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from repnext_mm.training.adaptive_clip import clip_adaptively
from repnext_mm.training.operator_inputs import guard_operators


def trains_faster() -> bool:
    """Whether this is a processor on which whole detectors were measured to train faster in bfloat16: one with AMX."""
    has_amx = getattr(torch.cpu, '_is_amx_tile_supported', None)  # torch 2.6 and later
    return get_device() == 'cpu' and has_amx is not None and bool(has_amx())


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """An ``OptimWrapper`` whose forward pass and losses run under bfloat16 autocast, on a CPU or a GPU.

    mmengine's ``AmpOptimWrapper`` refuses a CPU. bfloat16 has the exponent of float32, so that losses need no scaling:
    clipping, accumulation and checkpoints are those of ``OptimWrapper``, whose arguments these are. Parameters,
    gradients and the optimizer's state stay float32.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """What a training step's forward pass runs in."""
        guard_operators(model)
        with super().optim_context(model), torch.autocast(get_device(), dtype=torch.bfloat16):
            yield


@OPTIM_WRAPPERS.register_module()
class AdaptiveClipBfloat16OptimWrapper(Bfloat16OptimWrapper):
    """The same with adaptive gradient clipping. Arguments as of ``AdaptiveClipOptimWrapper``."""

    def __init__(self, *args: Any, clip_grad: Mapping[str, float] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        clip_adaptively(self, clip_grad)
