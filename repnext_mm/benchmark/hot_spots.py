"""Where a network's time goes, operation by operation, and the least that its arithmetic and its memory need."""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from repnext_mm.benchmark.complexity import count_macs
from repnext_mm.benchmark.latency import Latency, measure_latency

MATRICES = ((1536, 1536, 1536), (512, 256, 1024), (256, 512, 1024), (128, 64, 4096))
"""Sizes (M, K, N) to find the machine's matrix rate with: the best counts."""
COPY_MIB = 256  # far beyond any cache


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
def find_hot_spots(network: nn.Module, image: Tensor, *, rounds: int = 20) -> HotSpots:
    """Time a network, profile it, and measure what the machine could do.

    Args:
        network: in eval mode, on the device and in the dtype and memory format of ``image``.
        image: ``(N, 3, H, W)``.
        rounds: timed calls, and profiled ones.
    """
    device = image.device
    latency = measure_latency({'network': lambda: network(image)}, rounds=rounds, device=device)['network']
    kinds = _profiled(lambda: network(image), rounds, device)
    gmacs = count_macs(lambda: network(image)) / 1e9
    matrix_gflops, bandwidth_gbs = _matrix_gflops(image), _bandwidth_gbs(image)
    return HotSpots(
        latency=latency,
        by_kind_ms=dict(sorted(kinds.items(), key=lambda item: -item[1])),
        gmacs=gmacs,
        matrix_gflops=matrix_gflops,
        bandwidth_gbs=bandwidth_gbs,
        arithmetic_ms=2 * gmacs / matrix_gflops * 1e3,
        memory_ms=_convolution_bytes(network, image) / bandwidth_gbs / 1e6,
    )


def _profiled(call: Callable[[], object], rounds: int, device: torch.device) -> dict[str, float]:
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == 'cuda' else [])
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*Profiler clears events')  # of earlier cycles: there is one
        with profile(activities=activities, record_shapes=True) as profiler:
            for _ in range(rounds):
                call()
    named_device = hasattr(FunctionEventAvg(), 'self_device_time_total')  # torch 2.1 calls it cuda
    on = 'cpu' if device.type != 'cuda' else 'device' if named_device else 'cuda'
    found: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages(group_by_input_shape=True):
        if event.key.startswith('aten::') and (spent_us := getattr(event, f'self_{on}_time_total')):
            found[_kind(event.key.removeprefix('aten::'), event.input_shapes)] += spent_us / 1e3 / rounds
    return dict(found)


def _kind(name: str, shapes: Sequence[Sequence[int]]) -> str:
    if 'conv' in name and len(shapes) > 1 and len(shapes[1]) == 4:
        _, inputs, *size = shapes[1]
        if size == [1, 1]:
            return '1x1 convolutions'
        return 'depthwise convolutions' if inputs == 1 else 'stem'
    for kind, names in {
        'activation': ('gelu', 'relu'), 'norms': ('batch_norm',), 'additions': ('add', 'sub'),
        'copies and concatenations': ('cat', 'copy', 'clone', 'contiguous'),
    }.items():  # fmt: skip
        if any(part in name for part in names):
            return kind
    return 'views, allocation and dispatch'


def _matrix_gflops(like: Tensor) -> float:
    rates = []
    for m, k, n in MATRICES:
        a, b = like.new_ones(m, k), like.new_ones(k, n)
        rates.append(2 * m * k * n / _seconds(lambda a=a, b=b: a @ b, like.device) / 1e9)  # type: ignore[misc]
    return max(rates)


def _bandwidth_gbs(like: Tensor) -> float:
    source = like.new_empty(COPY_MIB * 2**20 // like.element_size())
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return moved / _seconds(lambda: target.copy_(source), like.device) / 1e9


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(12):
        if device.type == 'cuda':
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device.type == 'cuda':
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times[2:])


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
