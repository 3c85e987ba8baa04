"""A hook that trains and tests a model in another memory format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from repnext_mm.errors import UserError
from repnext_mm.training.operator_inputs import guard_operators, is_operator

MEMORY_FORMATS = {'channels_last': torch.channels_last, 'contiguous': torch.contiguous_format}


@HOOKS.register_module()
class MemoryFormatHook(Hook):
    """Keep a model's weights, and so its features, in a memory format: any model, in training and in testing.

    Averaged weights (EMA), gradients, the buckets of data-parallel wrappers, the optimizer's state and the fused
    backbone have the format too. The numbers are the same but for rounding, and checkpoints fit runs of either format.

    Args:
        memory_format: ``'channels_last'`` or ``'contiguous'``.

    Raises:
        UserError: ``memory_format`` is unknown, or is not contiguous in a run that shards its parameters.
    """

    priority = 'HIGH'  # before EMAHook (NORMAL), which copies the model before the run

    def __init__(self, memory_format: str = 'channels_last') -> None:
        if memory_format not in MEMORY_FORMATS:
            raise UserError(f'memory_format={memory_format!r} is unknown: choose one of {", ".join(MEMORY_FORMATS)}')
        self.memory_format = memory_format

    def before_run(self, runner: Runner) -> None:
        """Convert the model, and let wrappers that know its strides measure them again."""
        sharded = any(isinstance(module, FullyShardedDataParallel) for module in runner.model.modules())
        if sharded and self.memory_format != 'contiguous':
            raise UserError(
                f"memory_format='{self.memory_format}' cannot be kept by FSDP, whose parameters are one row: set "
                "strategy.type='DDPStrategy', or --memory-format contiguous"
            )
        if convert(runner.model, self.memory_format):
            for module in runner.model.modules():
                if isinstance(module, DistributedDataParallel):
                    # mmengine wraps before it calls any hook, and the gradient buckets have the strides of that time;
                    # the way from a pickled wrapper to a working one makes new ones
                    module.__setstate__(module.__getstate__())

    def before_train(self, runner: Runner) -> None:
        """Weights that were replaced, and the state of the optimizer, which a checkpoint brings as it was saved."""
        convert(runner.model, self.memory_format)
        for optimizer in _optimizers(runner.optim_wrapper):
            align_state(optimizer)

    def before_test(self, runner: Runner) -> None:
        """The deploy form, which the model becomes when fused weights are loaded."""
        convert(runner.model, self.memory_format)


def convert(model: nn.Module, memory_format: str) -> int:
    """Lay out a model's 4-D parameters and buffers, in place; returns how many were laid out otherwise.

    Images need no change: a convolution takes the format from either operand. mmcv's operators keep contiguous
    weights and get contiguous inputs, see ``guard_operators``.
    """
    wanted = MEMORY_FORMATS[memory_format]
    kept = {part for module in model.modules() if is_operator(module) for part in module.modules()}
    changed = 0
    for module in model.modules():
        if module in kept:
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.dim() != 4 or tensor.is_contiguous(memory_format=wanted):
                continue
            tensor.data = tensor.data.contiguous(memory_format=wanted)
            if tensor.is_leaf and tensor.grad is not None:
                tensor.grad = tensor.grad.contiguous(memory_format=wanted)
            changed += 1
    guard_operators(model)
    return changed


def align_state(optimizer: torch.optim.Optimizer) -> None:
    """Give what an optimizer keeps of a parameter the strides of the parameter.

    torch's fused optimizers read both as they lie in memory: where strides differ, ``AdamW(fused=True)`` on a CPU pairs
    a weight with the moments of another, without an error.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                like = torch.empty_like(parameter, dtype=value.dtype, device=value.device, requires_grad=False)
                state[name] = like.copy_(value)


def _optimizers(wrapper: Any) -> Iterator[torch.optim.Optimizer]:
    for part in wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]:
        yield part.optimizer
