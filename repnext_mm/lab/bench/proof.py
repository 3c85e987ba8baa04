"""Proofs that a fused model is the model, and the time that fusing saves: of one model, or row by row of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from repnext_mm.errors import UserError
from repnext_mm.lab.bench.exactness import (
    TOLERANCE_FLOAT32,
    TOLERANCE_FLOAT64,
    Consistency,
    check_consistency,
    with_random_statistics,
)
from repnext_mm.lab.bench.jobs import Shape
from repnext_mm.lab.bench.law_table import (
    BRANCHES,
    TRAIN,
    Row,
    contestants,
    law_table,
    measure_rows,
    measure_speed,
    names,
)
from repnext_mm.lab.bench.named_models import build_named
from repnext_mm.lab.bench.record import environment
from repnext_mm.lab.table import markdown_table
from repnext_mm.reparam.fuse import count_norms, count_parameters
from repnext_mm.reparam.fusible import Form
from repnext_mm.timing import Latency

OPERATIONS = ('consistency', 'speed', 'all')
Say = Callable[[str], object]


@dataclass(frozen=True)
class Proof:
    """Everything that was measured, as plain values, and why it is not a proof: empty when it is one."""

    record: dict[str, Any]
    failures: list[str]


def prove_model(
    name: str,
    *,
    shape: Shape,
    say: Say,
    options: Mapping[str, Any] | None = None,
    operation: str = 'all',
    form: Form = 'default',
    tolerance_float64: float = TOLERANCE_FLOAT64,
    tolerance_float32: float = TOLERANCE_FLOAT32,
    device: str = 'cpu',
    rounds: int = 30,
    warmup_s: float = 2.0,
    seed: int = 0,
) -> Proof:
    """Compare a model with its definition, and time both, as ``operation`` asks.

    Args:
        name, options: see ``build_named``.
        shape: of the image.
        say: takes what is found, as soon as it is, as text and tables.
        operation: of ``OPERATIONS``.
        form: of ``fuse``.
        tolerance_float64, tolerance_float32: see ``check_consistency``.
        device, rounds, warmup_s: see ``measure_speed``.
        seed: of weights, norm statistics and image.

    Raises:
        UserError: the model cannot be built, or the form or shape does not fit it.
    """
    torch.manual_seed(seed)
    model = build_named(name, options=options)
    with_random_statistics(model, shape=shape, seed=seed)
    record: dict[str, Any] = {'model': name, 'options': options, 'form': form, 'shape': shape}
    failures: list[str] = []
    say(f'{name}, form {form}, image {"x".join(map(str, shape))}, {device}')
    if operation != 'speed':
        found = check_consistency(
            model,
            form=form,
            shape=shape,
            device=device,
            tolerance_float64=tolerance_float64,
            tolerance_float32=tolerance_float32,
            seed=seed,
        )
        failures = list(found.failures)
        record['fused'] = asdict(found.report)
        record['consistency'] = {name: [asdict(level) for level in levels] for name, levels in found.levels.items()}
        record['tolerances'], record['failures'] = dict(found.tolerances), failures
        say(str(found.report))
        for line in found.report.refused:
            say(f'left as it is: {line}')
        if found.report:
            say(consistency_table(found))
    if operation != 'consistency' and not failures:  # what is wrong need not be fast
        models = contestants(model, form=form, shape=shape)
        sizes = {name: (count_parameters(network), count_norms(network)) for name, network in models.items()}
        times = measure_speed(models, shape=shape, device=device, rounds=rounds, warmup_s=warmup_s, seed=seed)
        record['speed'] = {
            name: {'parameters': sizes[name][0], 'norms': sizes[name][1], **asdict(latency)}
            for name, latency in times.items()
        }
        say(speed_table(times, sizes))
    return Proof(record, failures)


def prove_table(
    words: Sequence[str],
    *,
    shape: Shape,
    say: Say,
    progress: Say,
    device: str = 'cpu',
    rounds: int = 30,
    warmup_s: float = 2.0,
    seed: int = 0,
) -> Proof:
    """Prove and time the rows of the table of laws and families whose names contain a word; all of them without one.

    Args:
        words: see ``names``.
        shape: of the families' images, one and square; laws run at their own size.
        say: takes the table.
        progress: takes a line after each row.
        device, rounds, warmup_s, seed: see ``measure_rows``.

    Raises:
        UserError: the shape is not one square image, or no row has such a name.
    """
    if shape[0] != 1 or shape[2] != shape[3]:
        given = 'x'.join(map(str, shape))
        raise UserError(f'--shape {given} with --table: give one square image, such as 1x3x224x224')
    chosen, rows = names(words), list[Row]()
    measured = measure_rows(chosen, size=shape[2], device=device, rounds=rounds, warmup_s=warmup_s, seed=seed)
    for row in measured:
        rows.append(row)
        progress(f'{len(rows)}/{len(chosen)} {row.name}')
    say(f'Exact: the largest relative error in float64, which is given, is at most {TOLERANCE_FLOAT64:.0e}.')
    say(f'Times: median (p10 to p90) of {rounds} runs in turn, batch 1, float32. {_where(device)}.\n')
    say(law_table(rows))
    failures = [f'{row.name}: float64 error {row.error_float64:.1e}' for row in rows if not row.exact]
    record = {'rows': [{**asdict(row), 'speed_up': row.speed_up} for row in rows], 'failures': failures}
    return Proof(record, failures)


def consistency_table(found: Consistency) -> str:
    """A row for each output level."""
    exact, single = found.levels['float64'], found.levels['float32']
    head = ['output', 'shape', 'relative, float64', 'absolute, float64', 'relative, float32', 'absolute, float32']
    rows = []
    for index, (a, b) in enumerate(zip(exact, single, strict=True)):
        numbers = [f'{error:.1e}' for error in (a.relative, a.absolute, b.relative, b.absolute)]
        rows.append([str(index), 'x'.join(map(str, a.shape)), *numbers])
    limits = ', '.join(f'{value:.0e} in {name}' for name, value in found.tolerances.items())
    return f'\n{markdown_table(head, rows, texts=2)}\n\nLimits of the relative error: {limits}.'


def speed_table(times: dict[str, Latency], sizes: dict[str, tuple[int, int]]) -> str:
    """A row for each form; ``sizes``: its parameters and norms."""
    first = times.get(BRANCHES, times[TRAIN])
    rows = []
    for name, time in times.items():
        parameters, norms = sizes[name]
        milliseconds = [f'{value:.3f}' for value in (time.median_ms, time.p10_ms, time.p90_ms)]
        speed_up = f'{first.median_ms / time.median_ms:.2f}'
        rows.append([name, f'{parameters:,}', str(norms), *milliseconds, str(time.n), speed_up])
    head = ['form', 'parameters', 'norms', 'median, ms', 'p10', 'p90', 'n', 'speed-up']
    return f'\n{markdown_table(head, rows)}'


def _where(device: str) -> str:
    here = environment(device)
    threads = '' if device.startswith('cuda') else f', {here["threads"]} threads'
    return f'{here["device"]}{threads}, PyTorch {here["torch"]}'
