"""Running jobs, one child process each, and keeping what they measure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import IO, Any

from repnext_mm.lab.bench.jobs import Job
from repnext_mm.lab.bench.record import Record, write_record

CHILD = (sys.executable, '-m', 'repnext_mm.lab.bench.worker')
Progress = Callable[[str, int], object]  # what is going on, and how many steps were made


def steps(job: Job) -> int:
    """How many steps of progress a job makes."""
    return len(job.variants) + job.rounds


def run_jobs(
    jobs: Sequence[Job],
    record: Record,
    path: str | os.PathLike[str],
    *,
    repeats: int = 1,
    progress: Progress = lambda text, made: None,
    child: Sequence[str] = CHILD,
) -> list[str]:
    """Run all jobs ``repeats`` times over and write the record after each; what it holds already is not run again.

    Returns:
        A line for every failure.

    Raises:
        ValueError: less than one repeat.
    """
    if repeats < 1:
        raise ValueError(f'repeats={repeats}: run everything at least once')
    failures = []
    done = {(_key(run['job']), run['repeat']) for run in record['runs'] if run['status'] == 'measured'}
    record['runs'] = [run for run in record['runs'] if run['status'] == 'measured']
    for repeat in range(repeats):
        for job in jobs:
            plain = json.loads(json.dumps(asdict(job)))
            if (_key(plain), repeat) in done:
                progress(f'{job.name}: measured before', steps(job))
                continue
            run = {'job': plain, 'repeat': repeat, **run_job(job, progress=progress, child=child)}
            found = run.pop('environment', None)
            if found:
                record['environment'] = found  # as the child has it: threads, TF32
            record['runs'].append(run)
            write_record(record, path)
            failures += failures_of(run)
    return failures


def run_job(job: Job, *, progress: Progress = lambda text, made: None, child: Sequence[str] = CHILD) -> dict[str, Any]:
    """Run one job in a process of its own; a death of that process becomes a reported failure."""
    threads = str(job.threads)
    environment = {**os.environ, 'OMP_NUM_THREADS': threads, 'MKL_NUM_THREADS': threads}
    rows: dict[str, dict[str, Any]] = {}
    run: dict[str, Any] = {'status': 'measured', 'batch': job.shape[0]}
    doing, made, started = 'starting', 0, time.perf_counter()
    with tempfile.TemporaryFile('w+') as errors:
        process = subprocess.Popen(
            [*child, json.dumps(asdict(job))], env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            for event in _events(process.stdout):
                kind = event['event']
                if kind == 'preparing':
                    doing = f'preparing {event["variant"]}'
                elif kind == 'variant':
                    row = event['row']
                    rows[f'{row["model"]}/{row["form"]}'] = row
                    doing = 'warming up'
                elif kind == 'halved':
                    run['batch'] = event['batch']
                    rows.clear()
                elif kind == 'warm':
                    run['warmup_rounds'], doing = event['rounds'], 'timing'
                elif kind == 'times':
                    for name, times in event['times'].items():
                        rows[name] |= times
                elif kind == 'finished':
                    run |= {key: value for key, value in event.items() if key != 'event'}
                advance = int(kind in ('variant', 'round') and made < steps(job))
                made += advance
                progress(f'{job.name}: {doing}', advance)
            status = process.wait()
        finally:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        progress(job.name, steps(job) - made)
        errors.seek(0)
        if status or 'environment' not in run:
            run |= {'status': 'failed', 'reason': f'{_death(status, errors)} while {doing}'}
    run['seconds'] = round(time.perf_counter() - started, 1)
    for variant in job.variants:
        row = rows.setdefault(variant.name, {'model': variant.model, 'form': variant.form})
        if 'times_ms' not in row and 'reason' not in row:
            row |= {'status': 'failed', 'reason': run.get('reason', 'not timed')}
    run['variants'] = [rows[variant.name] for variant in job.variants]
    return run


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


def _key(job: dict[str, Any]) -> str:
    return json.dumps(job, sort_keys=True)


def _events(stream: IO[str] | None) -> Any:
    for line in stream or ():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a line cut short by a sudden death
        if isinstance(event, dict) and 'event' in event:
            yield event


def _death(status: int, errors: IO[str]) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        hint = ' (the system kills what takes too much memory)' if name == 'SIGKILL' else ''
        return f'the process was ended by {name}{hint}'
    lines = [line.strip() for line in errors.read().splitlines() if line.strip()]
    return f'the process ended with status {status}' + (f' ({lines[-1][:300]})' if lines else '')
