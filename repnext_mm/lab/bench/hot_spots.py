"""Where a network's time goes, by operation and by module, and the least that its arithmetic and memory need."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repnext_mm.lab.bench.complexity import count_macs
from repnext_mm.lab.bench.operations import eager_operations, onnxruntime_operations, openvino_operations
from repnext_mm.lab.bench.roofline import bandwidth_gbs, matrix_gflops
from repnext_mm.lab.bench.runtimes import prepare
from repnext_mm.timing import Latency, measure_latency

PROFILED = ('eager', 'compile', 'onnxruntime', 'openvino')
"""Runtimes that tell where their time goes."""
PARTS = ('stem', 'downsample', 'token_mixer', 'norm', 'channel_mixer')
"""Modules of RepNeXt whose time is told apart, stage by stage; the outermost counts."""


@dataclass(frozen=True, kw_only=True)
class HotSpots:
    """One network on one image."""

    latency: Latency
    by_kind_ms: dict[str, float]  # per call, as profiled, largest first; what is left of the latency is overhead
    gmacs: float
    matrix_gflops: float  # measured rate of this machine, with these threads
    bandwidth_gbs: float  # measured, read and written bytes of a large copy
    arithmetic_ms: float  # all multiply-accumulates at the matrix rate
    memory_ms: float  # inputs, outputs and weights of every convolution, once each, at that bandwidth

    @property
    def floor_ms(self) -> float:
        """No implementation of these convolutions can be faster here, unless it keeps outputs in caches."""
        return max(self.arithmetic_ms, self.memory_ms)


@torch.no_grad()  # not inference_mode: there torch 2.1 counts no operations
def find_hot_spots(
    network: nn.Module,
    image: Tensor,
    *,
    rounds: int = 20,
    runtime: str = 'eager',
    threads: int | None = None,
    native: bool = False,
    trace: Path | None = None,
) -> HotSpots:
    """Time a network, profile it, and measure what the machine could do.

    Args:
        network: in eval mode, on the device and in the dtype and memory format of ``image``.
        image: ``(N, 3, H, W)``.
        rounds: timed calls, and profiled ones.
        runtime: of ``PROFILED``; its own profiler is read, and timing runs without it.
        threads: of an exported runtime; PyTorch's are set for the whole process.
        native: let OpenVINO choose its precision.
        trace: see ``eager_operations``; of eager or compiled PyTorch.

    Raises:
        ValueError: the runtime has no profile here.
    """
    if runtime not in PROFILED:
        raise ValueError(f'runtime {runtime!r} is not profiled: choose one of {", ".join(PROFILED)}')
    device, threads = image.device, threads or torch.get_num_threads()
    with _kernels_named(runtime):
        run = prepare(network, image, runtime=runtime, threads=threads, native=native)
        latency = measure_latency({'network': run}, rounds=rounds, device=device)['network']
        if runtime == 'onnxruntime':
            kinds = onnxruntime_operations(network, image, rounds=rounds, threads=threads)
        elif runtime == 'openvino':
            kinds = openvino_operations(network, image, rounds=rounds, threads=threads, native=native)
        else:
            kinds = eager_operations(run, rounds=rounds, device=device, trace=trace)
    gmacs = count_macs(lambda: network(image)) / 1e9
    gflops, gbs = matrix_gflops(image), bandwidth_gbs(image)
    return HotSpots(
        latency=latency,
        by_kind_ms=dict(sorted(kinds.items(), key=lambda item: -item[1])),
        gmacs=gmacs,
        matrix_gflops=gflops,
        bandwidth_gbs=gbs,
        arithmetic_ms=2 * gmacs / gflops * 1e3,
        memory_ms=_convolution_bytes(network, image) / gbs / 1e6,
    )


@torch.no_grad()
def time_by_module(network: nn.Module, image: Tensor, *, rounds: int = 20) -> dict[str, float]:
    """Milliseconds per call of RepNeXt's parts in eager PyTorch, in the order in which they run.

    Keys are ``stem`` and ``stage S: PART``, a part's calls summed over the blocks of its stage; ``shortcuts and the
    rest`` is what the whole call takes beside them, the clock's own cost included.
    """
    spent: dict[str, float] = defaultdict(float)
    started: dict[int, float] = {}

    def now() -> float:
        if image.is_cuda:
            torch.cuda.synchronize(image.device)
        return time.perf_counter() * 1e3

    def start(module: nn.Module, inputs: Any) -> None:
        started[id(module)] = now()

    def stopped(label: str) -> Callable[..., None]:
        def stop(module: nn.Module, inputs: Any, output: Any) -> None:
            spent[label] += now() - started.pop(id(module))

        return stop

    for _ in range(3):
        network(image)
    handles = []
    for label, module in _parts(network):
        handles += [module.register_forward_pre_hook(start), module.register_forward_hook(stopped(label))]
    began = now()
    try:
        for _ in range(rounds):
            network(image)
    finally:
        for handle in handles:
            handle.remove()
    whole = now() - began
    spent['shortcuts and the rest'] = whole - sum(spent.values())
    return {label: total / rounds for label, total in spent.items()}


def _parts(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in network.named_modules():
        *holders, last = name.split('.')
        if last in PARTS and not set(holders) & set(PARTS) and not isinstance(module, nn.Identity):
            stage = re.search(r'stages\.(\d+)\.', name)
            yield f'stage {int(stage[1]) + 1}: {last}' if stage else last, module


@contextmanager
def _kernels_named(runtime: str) -> Iterator[None]:
    """Let the compiler write its kernels' names into the profile, on a CPU too."""
    if runtime != 'compile':
        yield
        return
    from torch._inductor import config

    with config.patch({'cpp.enable_kernel_profile': True}):
        yield


def _convolution_bytes(network: nn.Module, image: Tensor) -> int:
    """Bytes of every convolution's input, output and weights."""
    moved = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal moved
        tensors = [inputs[0], output, *module.parameters()]
        moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    handles = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d)]
    network(image)
    for handle in handles:
        handle.remove()
    return moved
