"""The experiment's table as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repnext_mm.demo.reparam import FormRow, ReparamReport

_TEXTS = 2  # columns that are no numbers


def format_forms(report: ReparamReport) -> str:
    """A Markdown table, a row per form; speed-ups are against the first form of each model."""
    head = ['model', 'form', 'top-1 accuracy', 'parameters', 'norms']
    for batch in report.rows[0].times:
        head += [f'{batch} picture{"s" if batch > 1 else ""}, ms (p10 to p90)', 'speed-up']
    lines = [head]
    for row in report.rows:
        lines.append(_cells(row, first=next(other for other in report.rows if other.model == row.model)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ['-' * (width + 2) if column < _TEXTS else '-' * (width + 1) + ':' for column, width in enumerate(widths)]
    texts = [_line(line, widths) for line in lines]
    return '\n'.join([texts[0], f'|{"|".join(rule)}|', *texts[1:]])


def _cells(row: FormRow, *, first: FormRow) -> list[str]:
    cells = [row.model, row.form, f'{row.accuracy:.4f}', f'{row.parameters:,}', str(row.norms)]
    for batch, time in row.times.items():
        cells += [
            f'{time.median_ms:.2f} ({time.p10_ms:.2f} to {time.p90_ms:.2f})',
            f'{first.times[batch].median_ms / time.median_ms:.2f}',
        ]
    return cells


def _line(cells: list[str], widths: list[int]) -> str:
    texts = [
        cell.ljust(width) if column < _TEXTS else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f'| {" | ".join(texts)} |'
