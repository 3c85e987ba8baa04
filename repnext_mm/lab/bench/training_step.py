"""Time and memory of a training step: branches merged on the fly against one convolution per branch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repnext_mm.lab.bench.training_ways import Way, loss_of, recording_gradients, step_of, ways_to_train
from repnext_mm.timing import Latency, quantiles, wall_times, warm_up

SHAPES = {'coco': (2, 3, 800, 1344), 'ade20k': (4, 3, 512, 512), '512': (2, 3, 512, 512)}
"""Images of one GPU in the published COCO and ADE20K runs, and the shape of this project's target."""
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
MEMORY_FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
MEMORY_KINDS = {'cuda': 'peak of the step above weights and optimizer state', 'cpu': 'storages saved for backward'}
TOLERANCE = 1e-3
"""Gradients in float32 may differ by this share of their length: sums over millions of pixels in another order."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Forward, backward and optimizer step of one way to train."""

    time: Latency
    memory_mib: float  # of one of MEMORY_KINDS; parameters are not in it
    loss_error: float  # relative, in float32, against the same network branch by branch
    gradient_error: float  # length of the difference over length of the gradient, of all parameters together


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """Ways to train one backbone, measured in one run: ``online``, ``branches``, both with norms in eval mode too."""

    arch: str
    shape: tuple[int, int, int, int]  # (N, 3, H, W)
    device: str
    dtype: str  # of autocast; parameters are float32
    memory_format: str
    compiled: bool
    memory_kind: str
    steps: Mapping[str, Step]

    def speedup(self, *, norm_eval: bool = False) -> float:
        """How many times faster online merging is, by the medians."""
        branches, online = self._pair(norm_eval)
        return branches.time.median_ms / online.time.median_ms

    def memory_saving(self, *, norm_eval: bool = False) -> float:
        """How many times less memory online merging needs."""
        branches, online = self._pair(norm_eval)
        return branches.memory_mib / online.memory_mib

    def _pair(self, norm_eval: bool) -> tuple[Step, Step]:
        suffix = ', norms in eval mode' if norm_eval else ''
        return self.steps[f'branches{suffix}'], self.steps[f'online{suffix}']


def measure_training_step(
    arch: str | Mapping[str, Any] = 'm4',
    *,
    shape: tuple[int, int, int, int] = SHAPES['512'],
    device: torch.device | str = 'cpu',
    dtype: str = 'float32',
    memory_format: str = 'contiguous',
    compile: bool = False,
    rounds: int = 20,
    warmup_rounds: int = 3,
    warmup_s: float = 1.0,
    progress: Callable[[], object] | None = None,
) -> TrainingStep:
    """Time forward, backward and AdamW step of a backbone, interleaved, and measure the memory of each way.

    Loss and gradients of online merging are compared with those of the branches first, in float32 without TF32. The
    learning rate is 0: the same arithmetic, and every round does the same work on the same weights. On CUDA, memory
    is the peak of one step above what stays between steps (weights, optimizer states); elsewhere it is the size of
    the distinct storages that autograd saves for the backward pass, parameters and buffers excluded.

    Args:
        arch: of ``RepNeXt``.
        shape: ``(N, 3, H, W)``; ``SHAPES`` has the published ones.
        device: where to train.
        dtype: of autocast, a name in ``DTYPES``.
        memory_format: of images and weights, a name in ``MEMORY_FORMATS``.
        compile: run every way through ``torch.compile``.
        rounds: timed steps of each way.
        warmup_rounds: and ``warmup_s`` seconds: the least warm-up.
        progress: called after each round.

    Raises:
        ValueError: an option is not known.
        RuntimeError: online merging and the branches do not have the same loss and gradients.
    """
    for kind, value, known in (('dtype', dtype, DTYPES), ('memory_format', memory_format, MEMORY_FORMATS)):
        if value not in known:
            raise ValueError(f'{kind}={value!r} is not one of {", ".join(known)}: choose one of those')
    if rounds < 1:
        raise ValueError(f'rounds={rounds}: measure at least one round')
    device = torch.device(device)
    torch.manual_seed(0)
    images = torch.randn(shape).to(device, memory_format=MEMORY_FORMATS[memory_format])
    ways = ways_to_train({'type': 'RepNeXt', 'arch': arch}, like=images)
    errors = {name: _compared(way, images) for name, way in ways.items()}

    def autocast() -> AbstractContextManager[object]:
        if dtype == 'float32':
            return nullcontext()  # torch 2.1 refuses float32 even where autocast is off
        return torch.autocast(device.type, dtype=DTYPES[dtype])

    if compile:
        ways = {name: way._replace(run=torch.compile(way.run)) for name, way in ways.items()}
    calls = {name: step_of(way, images, autocast) for name, way in ways.items()}
    warm_up(calls, rounds=max(warmup_rounds, 1), seconds=warmup_s, device=device)  # creates the optimizer states too
    memory_mib = {name: _memory_mib(calls[name], way, images, autocast) for name, way in ways.items()}
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
        compiled=compile,
        memory_kind=MEMORY_KINDS.get(device.type, MEMORY_KINDS['cpu']),
        steps=steps,
    )


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
            f'online merging differs from the branches by {errors[0]:.1e} in the loss and {errors[1]:.1e} in the '
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


def _memory_mib(
    step: Callable[[], None], way: Way, images: Tensor, autocast: Callable[[], AbstractContextManager[object]]
) -> float:
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
    saved: dict[int, int] = {}  # bytes by address: several nodes save one storage

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in way.kept:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold its own graph: a cycle

    with recording_gradients(), autocast(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss_of(way.run(images))
    return sum(saved.values()) / 2**20
