"""Where the time of a training step goes, and what merging on the fly could at best reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repnext_mm.lab.bench.complexity import count_macs
from repnext_mm.lab.bench.operations import eager_operations
from repnext_mm.lab.bench.roofline import bandwidth_gbs, matrix_gflops
from repnext_mm.lab.bench.training_step import MEMORY_FORMATS
from repnext_mm.lab.bench.training_ways import EVAL_NORMS, MERGED_ONCE, merged_once, step_of, ways_to_train
from repnext_mm.timing import Latency, measure_latency

PASSES = 3  # forward, gradient of the inputs, gradient of the weights: the same products each


@dataclass(frozen=True, kw_only=True)
class StepSpots:
    """Forward, backward and AdamW step of one way to train."""

    latency: Latency
    by_kind_ms: dict[str, float]  # per step, as profiled, largest first
    gmacs: float  # of the forward pass
    matrix_gflops: float  # measured rate of this machine, with these threads
    bandwidth_gbs: float  # measured, read and written bytes of a large copy
    arithmetic_ms: float  # three passes at the matrix rate


def find_step_spots(
    arch: str | Mapping[str, Any],
    *,
    shape: tuple[int, int, int, int],
    memory_format: str = 'contiguous',
    norm_eval: bool = False,
    device: torch.device | str = 'cpu',
    rounds: int = 5,
    trace: Callable[[str], Path] | None = None,
) -> dict[str, StepSpots]:
    """Time, in turn, and profile ``online``, ``branches`` and ``merged once``, which has nothing to merge.

    The difference between the first and the last is what merging costs: no faster merging gains more.

    Args:
        arch: of ``RepNeXt``.
        shape: ``(N, 3, H, W)``.
        memory_format: of images and weights.
        norm_eval: norms in eval mode, folded on the fly or, in ``merged once``, for good.
        device: where to train.
        rounds: timed steps of each way, and profiled ones.
        trace: the file of each way, by name; see ``eager_operations``.
    """
    torch.manual_seed(0)
    images = torch.randn(shape).to(device, memory_format=MEMORY_FORMATS[memory_format])
    suffix = EVAL_NORMS if norm_eval else ''
    found = ways_to_train({'type': 'RepNeXt', 'arch': arch}, like=images)
    ways = {name: found[name + suffix] for name in ('online', 'branches')}
    online = ways['online'].run
    assert isinstance(online, nn.Module)
    ways[MERGED_ONCE] = merged_once(online, norm_eval=norm_eval)
    calls = {name: step_of(way, images, nullcontext) for name, way in ways.items()}
    latency = measure_latency(calls, rounds=rounds, warmup_rounds=1, device=images.device)
    gflops, gbs = matrix_gflops(images), bandwidth_gbs(images)
    spots = {}
    for name, way in ways.items():
        file = None if trace is None else trace(name)
        kinds = eager_operations(calls[name], rounds=rounds, device=images.device, trace=file)
        gmacs = count_macs(lambda way=way: way.run(images)) / 1e9  # type: ignore[misc]
        spots[name] = StepSpots(
            latency=latency[name],
            by_kind_ms=dict(sorted(kinds.items(), key=lambda item: -item[1])),
            gmacs=gmacs,
            matrix_gflops=gflops,
            bandwidth_gbs=gbs,
            arithmetic_ms=PASSES * 2 * gmacs / gflops * 1e3,
        )
    return spots
