"""Training steps, interleaved: the train form, merged on the fly, against one convolution per branch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from repnext_mm.errors import UserError
from repnext_mm.lab.bench.exactness import with_random_statistics
from repnext_mm.lab.bench.networks import memory_format_of
from repnext_mm.lab.bench.runtimes import MEMORY_FORMATS, captured
from repnext_mm.models import RepNeXt
from repnext_mm.models.branchwise import branch_by_branch
from repnext_mm.models.token_mixers import RepDWConv
from repnext_mm.reparam import fuse
from repnext_mm.reparam.surgery import replaced
from repnext_mm.timing import Latency, quantiles, wall_times, warm_up

SHAPES = {'coco': (2, 3, 800, 1344), 'ade20k': (4, 3, 512, 512), '512': (2, 3, 512, 512)}
"""Images of one GPU in the published COCO and ADE20K runs, and the shape of this project's target."""
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
MEMORY_KINDS = {'cuda': 'peak of the step above weights and optimizer state', 'cpu': 'storages saved for backward'}
RUNTIMES = ('eager', 'compile', 'cudagraph')
TOLERANCE = 1e-3
"""Gradients in float32 may differ by this share of their length: sums over millions of pixels in another order."""
TRAIN, BRANCHES, MERGED_ONCE = 'train form', 'branches', 'merged once'
EVAL_NORMS = ', norms in eval mode'


@dataclass(frozen=True, kw_only=True)
class Step:
    """Forward, backward and optimizer step of one way to train."""

    time: Latency
    memory_mib: float  # of one of MEMORY_KINDS; parameters are not in it
    loss_error: float  # relative, in float32, against the same network run by its branches
    gradient_error: float  # length of the difference over length of the gradient, of all parameters together


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """Ways to train one backbone, measured in one run: see ``ways_to_train``."""

    arch: str
    shape: tuple[int, int, int, int]  # (N, 3, H, W)
    device: str
    dtype: str  # of autocast; parameters are float32
    memory_format: str
    runtime: str  # of RUNTIMES
    memory_kind: str
    steps: Mapping[str, Step]

    def branches_of(self, name: str) -> Step:
        """The step of the same network run by its branches, with norms in the same mode."""
        return self.steps[BRANCHES + EVAL_NORMS * name.endswith(EVAL_NORMS)]


def measure_training_step(
    arch: str | Mapping[str, Any] = 'm4',
    *,
    shape: tuple[int, int, int, int] = SHAPES['512'],
    device: torch.device | str = 'cpu',
    dtype: str = 'float32',
    memory_format: str = 'contiguous',
    runtime: str = 'eager',
    rounds: int = 20,
    warmup_rounds: int = 3,
    warmup_s: float = 1.0,
    progress: Callable[[], object] | None = None,
) -> TrainingStep:
    """Time forward, backward and AdamW step of a backbone, interleaved, and measure the memory of each way.

    Loss and gradients of the train form are compared with those of the branches first, in float32 without TF32. The
    learning rate is 0: the same arithmetic, and every round does the same work on the same weights. On CUDA, memory
    is the peak of one step above what stays between steps (weights, optimizer states); elsewhere it is the size of
    the distinct storages that autograd saves for the backward pass, parameters and buffers excluded.

    Args:
        arch: of ``RepNeXt``.
        shape: ``(N, 3, H, W)``; ``SHAPES`` has the published ones.
        device: where to train.
        dtype: of autocast, a name in ``DTYPES``.
        memory_format: of images and weights, a name in ``MEMORY_FORMATS``.
        runtime: a name in ``RUNTIMES``: each way as it is, through ``torch.compile``, or with its whole step as one
            CUDA graph, which tells what a GPU takes when the host that starts its kernels is not the limit.
        rounds: timed steps of each way.
        warmup_rounds: and ``warmup_s`` seconds: the least warm-up.
        progress: called after each round.

    Raises:
        UserError: an option is not known.
        RuntimeError: train form and branches do not have the same loss and gradients.
    """
    _check_known('memory_format', memory_format, MEMORY_FORMATS)
    _check_known('runtime', runtime, RUNTIMES)
    autocast = autocast_to(dtype, device)
    if rounds < 1:
        raise UserError(f'rounds={rounds}: measure at least one round')
    device = torch.device(device)
    if runtime == 'cudagraph' and device.type != 'cuda':
        raise UserError(f"runtime='cudagraph' on {device.type}: CUDA graphs need --device cuda")
    torch.manual_seed(0)
    images = torch.randn(shape).to(device, memory_format=MEMORY_FORMATS[memory_format])
    ways = ways_to_train(arch, like=images)
    errors = {name: _compared(way, images) for name, way in ways.items()}
    if runtime == 'compile':
        ways = {name: way._replace(run=torch.compile(way.run)) for name, way in ways.items()}
    eager = {name: step_of(way, images, autocast) for name, way in ways.items()}
    calls = {name: captured(step) for name, step in eager.items()} if runtime == 'cudagraph' else eager
    warm_up(calls, rounds=max(warmup_rounds, 1), seconds=warmup_s, device=device)  # creates the optimizer states too
    memory_mib = {name: saved_mib(eager[name], way, images, autocast) for name, way in ways.items()}
    times_ms = wall_times(calls, rounds=rounds, device=device, after_round=progress)
    steps = {
        name: Step(
            time=quantiles(times_ms[name]),
            memory_mib=memory_mib[name],
            loss_error=errors[name][0],
            gradient_error=errors[name][1],
        )
        for name in ways
    }
    return TrainingStep(
        arch=arch if isinstance(arch, str) else str(dict(arch)),
        shape=shape,
        device=str(device),
        dtype=dtype,
        memory_format=memory_format,
        runtime=runtime,
        memory_kind=MEMORY_KINDS.get(device.type, MEMORY_KINDS['cpu']),
        steps=steps,
    )


def autocast_to(dtype: str, device: torch.device | str) -> Callable[[], AbstractContextManager[object]]:
    """What a forward pass is run in.

    Raises:
        UserError: the name is not one of ``DTYPES``.
    """
    _check_known('dtype', dtype, DTYPES)
    if dtype == 'float32':
        return nullcontext  # torch 2.1 refuses float32 even where autocast is off
    return partial(torch.autocast, torch.device(device).type, dtype=DTYPES[dtype])


class Way(NamedTuple):
    """One way to train a network, and what a step of it needs."""

    run: Callable[[Tensor], Any]  # the network as it is run
    reference: nn.Module  # the same parameters, run by its branches
    parameters: list[nn.Parameter]
    kept: set[int]  # addresses of parameters and buffers
    optimizer: torch.optim.Optimizer


def ways_to_train(arch: str | Mapping[str, Any], *, like: Tensor) -> dict[str, Way]:
    """``TRAIN`` and ``BRANCHES``, with norms in train and in eval mode, in the memory format of the images ``like``.

    Two ways with norms in the same mode share their parameters and their optimizer, whose learning rate is 0.
    """
    ways = {}
    source = with_random_statistics(RepNeXt(arch).eval(), shape=(2, 3, 64, 64))
    for suffix, norm_eval in (('', False), (EVAL_NORMS, True)):
        online: Any = copy.deepcopy(source)
        online.norm_eval = norm_eval
        online.to(like.device, memory_format=memory_format_of(like))
        online.train()
        branches = branch_by_branch(online)
        parameters = list(online.parameters())
        kept = {tensor.untyped_storage().data_ptr() for tensor in [*parameters, *online.buffers()]}
        optimizer = _optimizer(parameters)
        for name, run in ((TRAIN, online), (BRANCHES, branches)):
            ways[name + suffix] = Way(run, branches, parameters, kept, optimizer)
    return ways


def merged_once(online: nn.Module, *, norm_eval: bool) -> Way:
    """The network that merging on the fly computes, with its merged kernels as parameters: what merging cannot beat.

    All norms stay as they are, but those in eval mode, which are folded for good. It is another model to an optimizer:
    a yardstick, not a way to train.
    """
    if norm_eval:
        merged, _ = fuse(copy.deepcopy(online).eval(), copy=True)
    else:
        merged = replaced(
            copy.deepcopy(online),
            lambda _, module: module.fused('default') if isinstance(module, RepDWConv) else None,
        )
    merged.requires_grad_(True).train()
    parameters = list(merged.parameters())
    return Way(merged, merged, parameters, set(), _optimizer(parameters))


def loss_of(outputs: Any) -> Tensor:
    """A scalar loss that depends on every output value."""
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


@contextmanager
def storages_saved(*, except_for: set[int]) -> Iterator[dict[int, int]]:
    """Bytes, by address, of the storages that autograd saves for the backward pass: several nodes save one storage."""
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in except_for:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold its own graph: a cycle

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield saved


def _compared(way: Way, images: Tensor) -> tuple[float, float]:
    """Relative errors of loss and gradients against the branches, in float32."""
    if way.run is way.reference:
        return 0.0, 0.0
    cudnn = torch.backends.cudnn
    with recording_gradients(), cudnn.flags(enabled=cudnn.enabled, benchmark=False, allow_tf32=False):
        loss, gradients = _loss_and_gradients(way.run, way.parameters, images)
        expected, references = _loss_and_gradients(way.reference, way.parameters, images)
    way.optimizer.zero_grad(set_to_none=True)
    pairs = zip(gradients, references, strict=True)
    distance = math.sqrt(sum((a.double() - b.double()).square().sum().item() for a, b in pairs))
    length = math.sqrt(sum(b.double().square().sum().item() for b in references))
    errors = abs(loss - expected) / abs(expected), distance / length
    if not all(error <= TOLERANCE for error in errors):  # NaN too
        raise RuntimeError(
            f'the train form differs from the branches by {errors[0]:.1e} in the loss and {errors[1]:.1e} in the '
            f'gradients, more than {TOLERANCE:.0e}: nothing was timed, one of the two is '
            'wrong or the images are too small for batch norm'
        )
    return errors


def _loss_and_gradients(
    run: Callable[[Tensor], Any], parameters: list[nn.Parameter], images: Tensor
) -> tuple[float, list[Tensor]]:
    loss = loss_of(run(images))
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)  # a forgotten branch is an error below
    pairs = zip(parameters, gradients, strict=True)
    return loss.item(), [torch.zeros_like(p) if gradient is None else gradient for p, gradient in pairs]


def saved_mib(
    step: Callable[[], None], way: Way, images: Tensor, autocast: Callable[[], AbstractContextManager[object]]
) -> float:
    """Mebibytes that a step holds at once beside its parameters, in the way of ``MEMORY_KINDS`` for its device."""
    if images.is_cuda:
        way.optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize(images.device)
        torch.cuda.reset_peak_memory_stats(images.device)
        before = torch.cuda.memory_allocated(images.device)
        step()
        torch.cuda.synchronize(images.device)
        peak = torch.cuda.max_memory_allocated(images.device) - before
        way.optimizer.zero_grad(set_to_none=True)
        return peak / 2**20
    with recording_gradients(), autocast(), storages_saved(except_for=way.kept) as saved:
        loss_of(way.run(images))
    return sum(saved.values()) / 2**20


def _optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.05, capturable=parameters[0].is_cuda)


def _check_known(kind: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise UserError(f'{kind}={value!r} is not one of {", ".join(known)}: choose one of those')
