"""Interleaved timing: A B C A B C ..., so that a machine that slows down slows all contestants alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Latency:
    """Quantiles of the measured wall time of one call, in milliseconds."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    n: int


def measure_latency(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 30,
    warmup_rounds: int = 3,
    warmup_s: float = 1.0,
    device: torch.device | str = 'cpu',
) -> dict[str, Latency]:
    """Time each call once per round; gradients are off.

    The warm-up lasts until both ``warmup_rounds`` rounds and ``warmup_s`` seconds have passed.
    ``device`` is where the calls compute: CUDA runs ahead of Python and is waited for before each reading of the clock.

    Raises:
        ValueError: nothing to time, or a count that cannot be.
    """
    if not calls:
        raise ValueError('nothing to time: give at least one named callable')
    if rounds < 1 or warmup_rounds < 0 or warmup_s < 0:
        raise ValueError(
            f'rounds={rounds}, warmup_rounds={warmup_rounds}, warmup_s={warmup_s}: '
            'measure at least one round, and give the warm-up numbers that are not negative'
        )
    device = torch.device(device)
    times_ms: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        warmed, start = 0, time.perf_counter()
        while warmed < warmup_rounds or time.perf_counter() - start < warmup_s:
            for call in calls.values():
                _elapsed_ms(call, device)
            warmed += 1
        for _ in range(rounds):
            for name, call in calls.items():
                times_ms[name].append(_elapsed_ms(call, device))
    return {name: _quantiles(values) for name, values in times_ms.items()}


def _elapsed_ms(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return (time.perf_counter() - start) * 1e3


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _quantiles(values: list[float]) -> Latency:
    p10, median, p90 = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    )
    return Latency(median_ms=median.item(), p10_ms=p10.item(), p90_ms=p90.item(), n=len(values))
