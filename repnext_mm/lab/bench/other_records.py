"""Training steps and whole models as records and as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from repnext_mm.lab.bench.record import Record
from repnext_mm.lab.bench.training_step import TrainingStep
from repnext_mm.lab.bench.whole_model import WholeModel


def add_results(record: Record, results: Sequence[TrainingStep | WholeModel]) -> None:
    """Append measurements to a record, as plain values."""
    record.setdefault('results', []).extend(json.loads(json.dumps(asdict(result))) for result in results)


def training_table(results: Sequence[TrainingStep]) -> list[str]:
    """Lines of a table, a row for each way to train; ratios are to the same network branch by branch."""
    lines = [
        '| arch | shape | autocast | format | way | median ms | p10 to p90 | n | x branches | memory, MiB '
        '| x branches | gradient error |',
        '|---|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|',
    ]
    for result in results:
        shape = 'x'.join(map(str, result.shape))
        where = f'{result.arch.upper()} | {shape} | {result.dtype} | {result.memory_format}'
        for name, step in result.steps.items():
            norm_eval = ', ' in name
            online = name.startswith('online')
            faster = f'{result.speedup(norm_eval=norm_eval):.2f}' if online else '1.00'
            smaller = f'{result.memory_saving(norm_eval=norm_eval):.2f}' if online else '1.00'
            lines.append(
                f'| {where} | {name}{", compiled" if result.compiled else ""} | {step.time.median_ms:.1f} | '
                f'{step.time.p10_ms:.1f} to {step.time.p90_ms:.1f} | {step.time.n} | {faster} | '
                f'{step.memory_mib:,.0f} | {smaller} | {step.gradient_error:.0e} |'
            )
    memory = dict.fromkeys(result.memory_kind for result in results)
    return [*lines, '', f'Memory: {"; ".join(memory)}. Both ways have the same loss and gradients up to the error.']


def whole_model_table(results: Sequence[WholeModel]) -> list[str]:
    """Lines of a table, a row for each part; the fused model against the trained one in the same run."""
    lines = []
    for result in results:
        counts = ', '.join(f'{count} {kind}' for kind, count in result.counts.items())
        size, seen = ('x'.join(map(str, shape)) for shape in (result.image_shape, result.input_shape))
        weights = 'trained weights' if result.trained else 'random weights'
        lines += [
            f'{result.config}, {weights}, picture of {size} ({result.image}), network input {seen}'
            f'{f", {counts}" if counts else ""}; {result.fusion}; relative error {result.error:.0e}.',
            '',
            '| part | train form, median ms | p10 to p90 | fused, median ms | p10 to p90 | n | times faster |',
            '|---|---:|---:|---:|---:|---:|---:|',
        ]
        lines += [*(_part(part, result.times) for part in result.times['train']), '']
    return lines


def _part(part: str, times: Mapping[str, Any]) -> str:
    train, fused = times['train'][part], times['fused'][part]
    cells = [part.replace('_', ' ')]
    for found in (train, fused):
        cells += [f'{found.median_ms:.1f}', f'{found.p10_ms:.1f} to {found.p90_ms:.1f}']
    ratio = train.median_ms / fused.median_ms if fused.median_ms else 1.0
    return f'| {" | ".join([*cells, str(fused.n), f"{ratio:.2f}"])} |'
