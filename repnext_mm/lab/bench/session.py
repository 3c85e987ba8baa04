"""A benchmark from what is asked for to its files: inference in processes of their own, all else in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from repnext_mm.errors import FileInTheWayError, UserError
from repnext_mm.lab.bench.chart import plot_record
from repnext_mm.lab.bench.jobs import Job, Shape, plan
from repnext_mm.lab.bench.networks import Variant
from repnext_mm.lab.bench.record import Record, check_same_machine, environment, new_record, read_record, write_record
from repnext_mm.lab.bench.tables import (
    add_results,
    heading,
    inference_tables,
    training_table,
    whole_file_tables,
    whole_model_tables,
    whole_step_tables,
)
from repnext_mm.lab.bench.training import RUNTIMES as TRAINING_RUNTIMES
from repnext_mm.lab.bench.training import measure_training_step

SEARCH = 0  # a throughput batch: the largest that fits
FIRST_BATCH = {'cuda': 1024, 'cpu': 32}  # where that search starts
ROUNDS, WARMUP_ROUNDS = {'cuda': 100, 'cpu': 30}, {'cuda': 50, 'cpu': 10}
REPEATED_ROUNDS = 20  # of training steps and whole models
TABLES: dict[str, Callable[[list[Any]], str]] = {
    'training': training_table,
    'whole_step': whole_step_tables,
    'whole_model': whole_model_tables,
    'whole_files': whole_file_tables,
}


@dataclass(frozen=True)
class Inference:
    """Jobs for ``run_jobs``, and the record that takes what they measure."""

    jobs: list[Job]
    record: Record
    repeats: int

    @property
    def steps(self) -> int:
        """How many steps of progress there are."""
        return self.repeats * sum(job.steps for job in self.jobs)


def plan_inference(
    variants: Sequence[Variant],
    path: Path,
    *,
    runtimes: Sequence[str],
    shapes: Sequence[Shape],
    dtypes: Sequence[str],
    memory_formats: Sequence[str],
    device: str,
    throughput: int | None,
    threads: int | None,
    tf32: bool,
    rounds: int | None,
    warmup_rounds: int | None,
    warmup_s: float,
    repeats: int,
    command: str,
    resume: bool,
) -> Inference:
    """Plan what can be measured here, and open the record at ``path``; see ``plan`` for options.

    Args:
        throughput: None for latency only; ``SEARCH`` for the largest batch that fits.
        command: what was called, for the record.
        resume: go on with the record at ``path``, if there is one.

    Raises:
        UserError: see ``plan``; the record is there, or was measured elsewhere.
    """
    search = throughput == SEARCH
    chosen: dict[str, Any] = {
        'rounds': ROUNDS[device] if rounds is None else rounds,
        'warmup_rounds': WARMUP_ROUNDS[device] if warmup_rounds is None else warmup_rounds,
        'warmup_s': warmup_s,
        'threads': torch.get_num_threads() if threads is None else threads,
        'device': device,
        'tf32': tf32,
    }
    jobs, skipped = plan(
        variants,
        runtimes=runtimes,
        shapes=shapes,
        dtypes=dtypes,
        memory_formats=memory_formats,
        throughput=FIRST_BATCH[device] if search else throughput,
        search_batch=search,
        **chosen,
    )
    torch.set_num_threads(chosen['threads'])
    here = environment(device)
    if resume and path.exists():
        record = read_record(path)
        check_same_machine(record, here)
    elif path.exists():
        raise FileInTheWayError(f'{path} exists: go on with it by --resume, or name another --output')
    else:
        settings = {'title': f'Inference on {here["device"]}', 'repeats': repeats, **chosen}
        record = new_record(command, here, settings)
    record['skipped'] = skipped
    write_record(record, path)  # now, so that a folder that cannot be written is known before the work
    return Inference(jobs, record, repeats)


def render(record: Record, path: Path) -> list[Path]:
    """Write the tables and charts of an inference record beside it; returns all of its files."""
    table = path.with_suffix('.md')
    table.write_text(inference_tables(record))
    return [path, table, *plot_record(record, path.with_suffix(''))]


def training_calls(
    archs: Sequence[str],
    *,
    runtimes: Sequence[str],
    shapes: Sequence[Shape],
    dtypes: Sequence[str],
    memory_formats: Sequence[str],
) -> list[Callable[..., Any]]:
    """``measure_training_step`` for every combination.

    Raises:
        UserError: a runtime in which networks do not train.
    """
    if unknown := [runtime for runtime in runtimes if runtime not in TRAINING_RUNTIMES]:
        raise UserError(f'--train with --runtime {unknown[0]}: choose of {", ".join(TRAINING_RUNTIMES)}')
    return [
        partial(
            measure_training_step,
            arch,
            shape=shape,
            dtype=dtype,
            memory_format=memory_format,
            runtime=runtime,
        )
        for runtime, arch, shape, dtype, memory_format in product(runtimes, archs, shapes, dtypes, memory_formats)
    ]


def measure_repeatedly(
    calls: Sequence[Callable[..., Any]],
    path: Path,
    *,
    kind: str,
    repeats: int,
    command: str,
    device: str,
    rounds: int | None,
    warmup_s: float,
    warmup_rounds: int | None,
    threads: int | None,
    tf32: bool,
    progress: Callable[[int], Callable[[], object]],
) -> str:
    """Measure training steps or whole models and write the record after each; every repeat starts from the beginning.

    Args:
        calls: of ``measure_training_step``, ``measure_whole_step``, ``measure_whole_model`` or
            ``measure_whole_files``, all but their rounds, warm-up and device.
        path: of the JSON record; the table is written beside it.
        kind: a key of ``TABLES``.
        progress: takes the number of steps, and gives what is to be called after each.

    Returns:
        The table.

    Raises:
        UserError: the record is there.
    """
    if path.exists():
        raise FileInTheWayError(f'{path} exists: name another --output')
    torch.set_num_threads(threads or torch.get_num_threads())
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    rounds = REPEATED_ROUNDS if rounds is None else rounds
    times: dict[str, Any] = {'rounds': rounds, 'warmup_s': warmup_s, 'device': device}
    if warmup_rounds is not None:
        times['warmup_rounds'] = warmup_rounds
    record = new_record(command, environment(device), {'kind': kind, 'repeats': repeats, **times})
    step = progress(rounds * repeats * len(calls))
    results = []
    for call in _repeated(calls, repeats):
        results.append(call(**times, progress=step))
        add_results(record, results[-1:])
        write_record(record, path)
    table = TABLES[kind](results)
    path.with_suffix('.md').write_text('\n'.join([*heading(record, kind.replace('_', ' ')), table]) + '\n')
    return table


def _repeated(calls: Sequence[Callable[..., Any]], repeats: int) -> Iterator[Callable[..., Any]]:
    for _ in range(repeats):
        yield from calls
