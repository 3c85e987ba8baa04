"""What a machine can do at best: its rate in matrix products, and its memory bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

MATRICES = ((1536, 1536, 1536), (512, 256, 1024), (256, 512, 1024), (128, 64, 4096))
"""Sizes (M, K, N) to find the matrix rate with: the best counts."""
COPY_MIB = 256  # far beyond any cache


def matrix_gflops(like: Tensor) -> float:
    """Measured rate of matrix products, in the dtype and on the device of a tensor, with the threads that are set."""
    rates = []
    for m, k, n in MATRICES:
        a, b = like.new_ones(m, k), like.new_ones(k, n)
        rates.append(2 * m * k * n / _seconds(lambda a=a, b=b: a @ b, like.device) / 1e9)  # type: ignore[misc]
    return max(rates)


def bandwidth_gbs(like: Tensor) -> float:
    """Measured bytes per second of a large copy, read and written ones, in units of 1e9."""
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
