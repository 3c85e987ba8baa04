"""Ways to train one network: branches merged on the fly, one convolution per branch, or merged once and for all."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from repnext_mm.lab.bench.networks import memory_format_of, randomise
from repnext_mm.models.branchwise import branch_by_branch
from repnext_mm.reparam import fuse, replaced

EVAL_NORMS = ', norms in eval mode'
MERGED_ONCE = 'merged once'


class Way(NamedTuple):
    """One way to train a network, and what a step of it needs."""

    run: Callable[[Tensor], Any]  # the network as it is run
    reference: nn.Module  # the same parameters, branch by branch
    parameters: list[nn.Parameter]
    kept: set[int]  # addresses of parameters and buffers
    optimizer: torch.optim.Optimizer


def ways_to_train(settings: Mapping[str, Any], *, like: Tensor) -> dict[str, Way]:
    """``online`` and ``branches``, with norms in train and in eval mode, in the memory format of the images ``like``.

    Two ways with norms in the same mode share their parameters and their optimizer, whose learning rate is 0.
    """
    ways = {}
    source = randomise(MODELS.build(dict(settings)).eval())
    for suffix, norm_eval in (('', False), (EVAL_NORMS, True)):
        online: Any = copy.deepcopy(source)
        online.norm_eval = norm_eval
        online.to(like.device, memory_format=memory_format_of(like))
        online.train()
        branches = branch_by_branch(online)
        parameters = list(online.parameters())
        kept = {tensor.untyped_storage().data_ptr() for tensor in [*parameters, *online.buffers()]}
        optimizer = _optimizer(parameters)
        for name, run in (('online', online), ('branches', branches)):
            ways[name + suffix] = Way(run, branches, parameters, kept, optimizer)
    return ways


def merged_once(online: nn.Module, *, norm_eval: bool) -> Way:
    """The network that merging on the fly computes, with its merged kernels as parameters: what merging cannot beat.

    All norms stay as they are, but those in eval mode, which are folded for good. It is another model to an optimizer:
    a yardstick, no way to train.
    """
    if norm_eval:
        merged, _ = fuse(copy.deepcopy(online).eval(), copy=True)
    else:
        from repnext_mm.models.repnext import RepDWConv

        merged = replaced(
            copy.deepcopy(online),
            lambda _, module: module.fused('default') if isinstance(module, RepDWConv) else None,
        )
    merged.requires_grad_(True).train()
    parameters = list(merged.parameters())
    return Way(merged, merged, parameters, set(), _optimizer(parameters))


def loss_of(outputs: Any) -> Tensor:
    """A scalar that every output value has a part in."""
    losses = [level.float().square().sum() / level.numel() for level in outputs]  # mean() stores its input in torch 2.1
    return torch.stack(losses).sum()


@contextmanager
def recording_gradients() -> Iterator[None]:
    """Record gradients, also where the caller switched them off: timing does, possibly by inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def step_of(way: Way, images: Tensor, autocast: Callable[[], AbstractContextManager[object]]) -> Callable[[], None]:
    """A call that does one whole step: forward, backward, optimizer."""

    def step() -> None:
        with recording_gradients():
            way.optimizer.zero_grad(set_to_none=True)
            with autocast():
                loss = loss_of(way.run(images))
            loss.backward()
            way.optimizer.step()

    return step


def _optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.05)
