"""What is measured together: one runtime, shape, dtype and memory format, with all variants in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from repnext_mm.lab.bench.networks import PEER_FORM, TRAIN_FORM, Variant
from repnext_mm.lab.bench.peers import has_timm
from repnext_mm.lab.bench.runtimes import EXPORTED, why_not

MIN_SIZE = 32  # pixels


@dataclass(frozen=True)
class Job:
    """The work of one child process; plain values, so that it travels as JSON."""

    runtime: str
    shape: tuple[int, int, int, int]  # (N, 3, H, W); N is where a search for the largest batch starts
    dtype: str
    memory_format: str
    variants: tuple[Variant, ...]
    mode: str = 'latency'  # or 'throughput'
    search_batch: bool = False  # halve N until every variant fits
    device: str = 'cpu'
    threads: int = 1
    tf32: bool = False
    rounds: int = 30
    warmup_rounds: int = 10
    warmup_s: float = 2.0
    seed: int = 0

    @property
    def name(self) -> str:
        """For people."""
        batch = '' if self.mode == 'latency' else f'{self.mode} '
        shape = 'x'.join(map(str, self.shape))
        return f'{batch}{self.runtime} {shape} {self.dtype} {self.memory_format}'


def plan(
    variants: Sequence[Variant],
    *,
    runtimes: Sequence[str],
    shapes: Sequence[tuple[int, int, int, int]],
    dtypes: Sequence[str],
    memory_formats: Sequence[str],
    device: str = 'cpu',
    throughput: int | None = None,
    search_batch: bool = False,
    threads: int = 1,
    tf32: bool = False,
    rounds: int = 30,
    warmup_rounds: int = 10,
    warmup_s: float = 2.0,
) -> tuple[list[Job], list[str]]:
    """Every combination that can be measured here, and a line for each that cannot.

    Args:
        throughput: a batch to measure the throughput of, in jobs of their own after those of latency.
        search_batch: whether ``throughput`` is only where the search for the largest batch starts.

    Raises:
        ValueError: an unknown name, a number or shape that cannot be, or nothing left to measure.
    """
    _check_numbers(rounds=rounds, threads=threads, warmup_rounds=warmup_rounds, warmup_s=warmup_s)
    if throughput is not None and throughput < 1:
        raise ValueError(f'a throughput batch of {throughput}: give at least 1')
    skipped, present = [], list(variants)
    if not has_timm() and any(variant.form == PEER_FORM for variant in variants):
        peers = ', '.join(variant.model for variant in variants if variant.form == PEER_FORM)
        skipped.append(f'{peers}: timm is not installed')
        present = [variant for variant in variants if variant.form != PEER_FORM]
    fused = [variant for variant in present if variant.form != TRAIN_FORM]
    if len(fused) < len(present):
        skipped += [
            f'{runtime}, train form: exported files hold fused networks' for runtime in runtimes if runtime in EXPORTED
        ]
    jobs: list[Job] = []
    modes = ['latency'] if throughput is None else ['latency', 'throughput']
    for mode, runtime, shape, dtype, memory_format in product(modes, runtimes, shapes, dtypes, memory_formats):
        _check_shape(shape)
        if mode == 'throughput':
            shape = (throughput or 1, *shape[1:])
        timed = tuple(fused if runtime in EXPORTED else present)
        job = Job(
            runtime,
            shape,
            dtype,
            memory_format,
            timed,
            mode,
            mode == 'throughput' and search_batch,
            device,
            threads,
            tf32,
            rounds,
            warmup_rounds,
            warmup_s,
        )
        reason = why_not(runtime, device=device, dtype=dtype, memory_format=memory_format, tf32=tf32)
        reason = reason or (None if job.variants else 'no fused form to export')
        if reason:
            skipped.append(f'{job.name}: {reason}')
        elif job not in jobs:  # throughput at one size may come from several batches
            jobs.append(job)
    if not jobs or not present:
        raise ValueError('nothing is left to measure: ' + '; '.join(skipped))
    return jobs, skipped


def parse_shape(text: str) -> tuple[int, int, int, int]:
    """``'1x3x224x224'`` or ``'3x224x224'`` as numbers.

    Raises:
        ValueError: it is no image shape.
    """
    try:
        numbers = [int(part) for part in text.split('x')]
    except ValueError:
        numbers = []
    if len(numbers) == 3:
        numbers.insert(0, 1)
    if len(numbers) != 4:
        raise ValueError(f'{text!r} is no shape: write BATCHxCHANNELSxHEIGHTxWIDTH, such as 1x3x224x224')
    shape = (numbers[0], numbers[1], numbers[2], numbers[3])
    _check_shape(shape)
    return shape


def _check_shape(shape: tuple[int, int, int, int]) -> None:
    batch, channels, height, width = shape
    if batch < 1 or channels != 3 or min(height, width) < MIN_SIZE:
        raise ValueError(
            f'cannot time images of shape {"x".join(map(str, shape))}: the batch must be at least 1, channels 3, '
            f'height and width at least {MIN_SIZE}'
        )


def _check_numbers(*, rounds: int, threads: int, warmup_rounds: int, warmup_s: float) -> None:
    if rounds < 1 or threads < 1 or warmup_rounds < 0 or warmup_s < 0:
        raise ValueError(
            f'rounds={rounds}, threads={threads}, warmup_rounds={warmup_rounds}, warmup_s={warmup_s}: rounds and '
            'threads must be at least 1, the warm-up not negative'
        )
