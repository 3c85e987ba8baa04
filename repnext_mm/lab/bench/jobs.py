"""Jobs: one runtime, shape, dtype and memory format with all variants in turn, each job in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from typing import IO, Any

from repnext_mm.errors import UserError
from repnext_mm.lab.bench.networks import PEER_FORM, TRAIN_FORM, Variant, has_timm
from repnext_mm.lab.bench.record import Record, write_record
from repnext_mm.lab.bench.runtimes import EXPORTED, why_not

WORKER = (sys.executable, '-m', 'repnext_mm.lab.bench.worker')
MIN_SIZE = 32  # pixels
Shape = tuple[int, int, int, int]  # (N, 3, H, W)
Progress = Callable[[str, int], object]  # what is going on, and how many steps were made


@dataclass(frozen=True)
class Job:
    """The work of one process; plain values, so that it travels as JSON."""

    runtime: str
    shape: Shape  # N is where a search for the largest batch starts
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

    @property
    def steps(self) -> int:
        """How many steps of progress it makes."""
        return len(self.variants) + 1 + self.rounds  # the floor between them


def plan(
    variants: Sequence[Variant],
    *,
    runtimes: Sequence[str],
    shapes: Sequence[Shape],
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
        UserError: an unknown name, a number or shape that is not usable, or nothing left to measure.
    """
    _check_numbers(rounds=rounds, threads=threads, warmup_rounds=warmup_rounds, warmup_s=warmup_s)
    if throughput is not None and throughput < 1:
        raise UserError(f'a throughput batch of {throughput}: give at least 1')
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
        raise UserError('nothing is left to measure: ' + '; '.join(skipped))
    return jobs, skipped


def parse_shape(text: str) -> Shape:
    """``'1x3x224x224'`` or ``'3x224x224'`` as numbers.

    Raises:
        UserError: it is not the shape of images.
    """
    try:
        numbers = [int(part) for part in text.split('x')]
    except ValueError:
        numbers = []
    if len(numbers) == 3:
        numbers.insert(0, 1)
    if len(numbers) != 4:
        raise UserError(f'{text!r} is not a shape: write BATCHxCHANNELSxHEIGHTxWIDTH, such as 1x3x224x224')
    shape = (numbers[0], numbers[1], numbers[2], numbers[3])
    _check_shape(shape)
    return shape


def run_jobs(
    jobs: Sequence[Job],
    record: Record,
    path: str | os.PathLike[str],
    *,
    repeats: int = 1,
    progress: Progress = lambda text, made: None,
    worker: Sequence[str] = WORKER,
) -> list[str]:
    """Run all jobs ``repeats`` times over and write the record after each; what it holds already is not run again.

    Returns:
        A line for every failure.

    Raises:
        UserError: less than one repeat.
    """
    if repeats < 1:
        raise UserError(f'repeats={repeats}: run everything at least once')
    failures = []
    done = {(_key(run['job']), run['repeat']) for run in record['runs'] if run['status'] == 'measured'}
    record['runs'] = [run for run in record['runs'] if run['status'] == 'measured']
    for repeat in range(repeats):
        for job in jobs:
            plain = json.loads(json.dumps(asdict(job)))
            if (_key(plain), repeat) in done:
                progress(f'{job.name}: measured before', job.steps)
                continue
            run = {'job': plain, 'repeat': repeat, **run_job(job, progress=progress, worker=worker)}
            found = run.pop('environment', None)
            if found:
                record['environment'] = found  # as the worker has it: threads, TF32
            record['runs'].append(run)
            write_record(record, path)
            failures += failures_of(run)
    return failures


def run_job(
    job: Job, *, progress: Progress = lambda text, made: None, worker: Sequence[str] = WORKER
) -> dict[str, Any]:
    """Run one job in a process of its own; when that process dies, this is reported as a failure."""
    threads = str(job.threads)
    environment = {**os.environ, 'OMP_NUM_THREADS': threads, 'MKL_NUM_THREADS': threads}
    result: dict[str, Any] = {}
    doing, made, started = 'starting', 0, time.perf_counter()
    with tempfile.TemporaryFile('w+') as errors:
        process = subprocess.Popen(
            [*worker, json.dumps(asdict(job))], env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            for line in process.stdout or ():
                if line.startswith('{'):
                    with suppress(ValueError):  # cut short by a sudden death
                        result = json.loads(line)
                    continue
                doing = line.strip()
                advance = int(made < job.steps)  # a batch that is halved starts again
                made += advance
                progress(f'{job.name}: {doing}', advance)
            status = process.wait()
        finally:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        progress(job.name, job.steps - made)
        if status or not result:
            reason = f'{_death(status, errors)} while {doing}'
            rows = [{**variant._asdict(), 'status': 'failed', 'reason': reason} for variant in job.variants]
            result = {'status': 'failed', 'reason': reason, 'batch': job.shape[0], 'variants': rows}
    return {'status': 'measured', **result, 'seconds': round(time.perf_counter() - started, 1)}


def failures_of(run: dict[str, Any], *, repeat: bool = True) -> list[str]:
    """A line for the process when it died, else one for each variant that was not timed."""
    job = run['job']
    shape = 'x'.join(map(str, (run['batch'], *job['shape'][1:])))
    where = f'{job["runtime"]} {shape} {job["dtype"]} {job["memory_format"]}'
    if repeat:
        where += f', repeat {run["repeat"] + 1}'
    if run['status'] == 'failed':
        return [f'{where}: {run["reason"]}']
    return [
        f'{where}: {row["model"]}/{row["form"]}: {row["reason"]}'
        for row in run['variants']
        if row['status'] == 'failed'
    ]


def _check_shape(shape: Shape) -> None:
    batch, channels, height, width = shape
    if batch < 1 or channels != 3 or min(height, width) < MIN_SIZE:
        raise UserError(
            f'cannot time images of shape {"x".join(map(str, shape))}: the batch must be at least 1, channels 3, '
            f'height and width at least {MIN_SIZE}'
        )


def _check_numbers(*, rounds: int, threads: int, warmup_rounds: int, warmup_s: float) -> None:
    if rounds < 1 or threads < 1 or warmup_rounds < 0 or warmup_s < 0:
        raise UserError(
            f'rounds={rounds}, threads={threads}, warmup_rounds={warmup_rounds}, warmup_s={warmup_s}: rounds and '
            'threads must be at least 1, the warm-up not negative'
        )


def _key(job: dict[str, Any]) -> str:
    return json.dumps(job, sort_keys=True)


def _death(status: int, errors: IO[str]) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        hint = ' (the system kills what takes too much memory)' if name == 'SIGKILL' else ''
        return f'the process was ended by {name}{hint}'
    errors.seek(0)
    lines = [line.strip() for line in errors.read().splitlines() if line.strip()]
    named = [line for line in lines if re.match(r'[A-Za-z_][\w.]*(Error|Exception): ', line)]  # CUDA adds lines to it
    return f'the process ended with status {status}' + ''.join(f' ({line[:300]})' for line in (named or lines)[-1:])
