"""One job in a process of its own: prepare and prove every variant, then time them in turn.

Run as ``python -m repnext_mm.lab.bench.worker JOB``: prints a line when it starts something new, and its result, as
one line of JSON, at the end.
"""

from __future__ import annotations

import gc
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from repnext_mm.export.mobile import TOLERANCES
from repnext_mm.lab.bench.floor import STACKS, pointwise_macs, stack_of
from repnext_mm.lab.bench.jobs import Job
from repnext_mm.lab.bench.networks import AUTO, Variant, build_train_form, in_form, resolved, tolerance
from repnext_mm.lab.bench.record import environment
from repnext_mm.lab.bench.runtimes import DTYPES, INT8, INT8_NNCF, MEMORY_FORMATS, NATIVE, Run, prepare
from repnext_mm.reparam.fuse import count_norms, count_parameters
from repnext_mm.reparam.verify import distances, worst
from repnext_mm.timing import event_times, wall_times, warm_up

MIB = 2**20
TOLERANCE_INT8 = 0.1  # shows that it is that network; what int8 costs, only data tell (`repnext export --int8 --data`)
Say = Callable[[str], object]


class DoesNotFit(Exception):
    """A variant needs more memory than there is, at a batch that may still be halved."""


def measure(job: Job, say: Say) -> dict[str, Any]:
    """Do a job and return its result, with a row for each variant; ``say`` what is being done, a step each time."""
    set_up(job)
    with torch.no_grad():  # not inference mode yet: exporters refuse tensors that were made in it
        job, rows, calls = _prepared(job, say)
    result: dict[str, Any] = {'batch': job.shape[0], 'variants': rows}
    if calls:
        stacks, stack_calls = _stacks(job, say)
        result['warmup_rounds'], times = _times(job, {**calls, **stack_calls}, say)
        for row in rows:
            row |= times.get(f'{row["model"]}/{row["form"]}', {})
        result['stacks'] = [{**stack, **times[name]} for name, stack in stacks.items()]
    return {**result, 'process_peak_rss_mib': _peak_rss_mib(), 'environment': environment(job.device)}


def set_up(job: Job) -> None:
    """Set threads, seed and the switches that change speed."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    torch.backends.cudnn.benchmark = True  # shapes are fixed
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = job.tf32


@torch.inference_mode()
def _times(job: Job, calls: dict[str, Run], say: Say) -> tuple[int, dict[str, dict[str, list[float]]]]:
    say('warming up')
    made = warm_up(calls, rounds=job.warmup_rounds, seconds=job.warmup_s, device=job.device)
    wall = wall_times(calls, rounds=job.rounds, device=job.device, after_round=lambda: say('timing'))
    times = {name: {'times_ms': values} for name, values in wall.items()}
    if job.device == 'cuda':
        for name, values in event_times(calls, rounds=job.rounds).items():
            times[name]['event_times_ms'] = values
    return made, times


def _stacks(job: Job, say: Say) -> tuple[dict[str, dict[str, Any]], dict[str, Run]]:
    """What the stacks of ``floor`` are and compute, and what to time, by name."""
    say('preparing the floor')
    rows, calls = dict[str, dict[str, Any]](), dict[str, Run]()
    for channels, size in STACKS:
        name = f'{channels} channels, {size}x{size}'
        with torch.no_grad():
            network, images = stack_of(channels, size, image=_image(job))
            rows[name] = {'stack': name, 'macs': pointwise_macs(network, images)}
            calls[name] = prepare(network, images, runtime=job.runtime, threads=job.threads, dtype=job.dtype)
    return rows, calls


def _image(job: Job) -> Tensor:
    image = torch.randn(job.shape, generator=torch.Generator().manual_seed(job.seed))
    return image.to(job.device, DTYPES[job.dtype]).contiguous(memory_format=MEMORY_FORMATS[job.memory_format])


def _prepared(job: Job, say: Say) -> tuple[Job, list[dict[str, Any]], dict[str, Run]]:
    """The job at a batch that fits, a row for each variant, and what to time."""
    while True:
        with suppress(DoesNotFit):
            return job, *_prepare_all(job, say)
        job = replace(job, shape=(job.shape[0] // 2, *job.shape[1:]))
        gc.collect()  # here, where no traceback holds on to tensors any more
        if job.device == 'cuda':
            torch.cuda.empty_cache()


def _prepare_all(job: Job, say: Say) -> tuple[list[dict[str, Any]], dict[str, Run]]:
    image = _image(job)
    rows, calls = list[dict[str, Any]](), dict[str, Run]()
    for variant in job.variants:
        say(f'preparing {variant.name}')
        row: dict[str, Any] = variant._asdict()
        rows.append(row)
        try:
            run = _prepare_one(job, variant, image, row)
            if run is not None:
                calls[variant.name] = run
        except Exception as failure:  # one variant's failure must not prevent the others from being timed
            if job.search_batch and job.shape[0] > 1 and _out_of_memory(failure):
                raise DoesNotFit from None
            row['reason'] = _sentence(failure)
        row['status'] = 'failed' if 'reason' in row else 'measured'
    return rows, calls


def _prepare_one(job: Job, variant: Variant, image: Tensor, row: dict[str, Any]) -> Run | None:
    train_form, references = _reference(variant.model, job)
    form = resolved(train_form, variant.form, image=image)
    if variant.form == AUTO:
        row['chosen'] = form
    base = _reset_peak() if job.device == 'cuda' else 0
    start = time.perf_counter()
    network = in_form(train_form, form, image=image)
    row['parameters'], row['norms'] = count_parameters(network), count_norms(network)
    run = prepare(network, image, runtime=job.runtime, threads=job.threads, dtype=job.dtype)
    with torch.inference_mode():
        outputs = run()
        row['prepare_s'] = round(time.perf_counter() - start, 3)
        error = worst(distances([output[:1] for output in outputs], references))
        del outputs
    row['pointwise_macs'] = pointwise_macs(network, image)
    row['error'] = None if math.isnan(error) else error  # JSON has no NaN
    row['tolerance'] = _tolerance(job)
    if job.device == 'cuda':
        if job.runtime != 'cudagraph':  # a graph took its memory when it was captured
            _reset_peak()  # the first run also tried kernels out
        with torch.inference_mode():
            run()
        torch.cuda.synchronize()
        # its weights and activations; the image and the variants before it are not counted
        row['peak_memory_mib'] = round((torch.cuda.max_memory_allocated() - base) / MIB, 1)
    if not error <= row['tolerance']:
        row['reason'] = (
            f'differs from the float32 train form by {error:.1e}, more than {row["tolerance"]:.1e}: not timed'
        )
        return None
    return run


def _tolerance(job: Job) -> float:
    if job.dtype in (INT8, INT8_NNCF):
        return TOLERANCE_INT8
    if job.runtime in TOLERANCES:  # of phones: some approximate GELU
        return max(TOLERANCES[job.runtime], tolerance(torch.float32))
    return tolerance(torch.bfloat16 if job.dtype == NATIVE else DTYPES[job.dtype], tf32=job.tf32)


@cache
def _train_form(model: str, seed: int) -> nn.Module:
    return build_train_form(model, seed=seed)


@cache
def _first_outputs(model: str, job: Job) -> tuple[Tensor, ...]:
    image = torch.randn(job.shape, generator=torch.Generator().manual_seed(job.seed))[:1]
    image = image.to(DTYPES[job.dtype]).float()  # the very numbers that the variants see
    return tuple(_train_form(model, job.seed)(image))


def _reference(model: str, job: Job) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return _train_form(model, job.seed), _first_outputs(model, job)


def _reset_peak() -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _out_of_memory(failure: Exception) -> bool:
    # the CPU's allocator raises a plain RuntimeError
    return isinstance(failure, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(failure)


def _sentence(failure: Exception) -> str:
    if _out_of_memory(failure):
        return 'out of memory'
    lines = re.sub(r'\x1b\[[\d;]*m', '', str(failure)).strip().splitlines()  # without colors
    return f'{type(failure).__name__}: {lines[0][:300]}' if lines else type(failure).__name__


def _peak_rss_mib() -> float | None:
    """The largest resident set of this whole process so far: all variants, weights and PyTorch itself."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (MIB if sys.platform == 'darwin' else 1024), 1)


def main() -> None:
    """Read the job from the command line and keep stdout for our lines: libraries print there too."""
    job = json.loads(sys.argv[1])
    job |= {'shape': tuple(job['shape']), 'variants': tuple(Variant(*pair) for pair in job['variants'])}
    with os.fdopen(os.dup(1), 'w') as lines:
        os.dup2(2, 1)
        result = measure(Job(**job), partial(print, file=lines, flush=True))
        lines.write(json.dumps(result) + '\n')


if __name__ == '__main__':
    main()
