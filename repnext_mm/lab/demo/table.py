"""The demo's table as text."""

from __future__ import annotations

from collections.abc import Mapping


def format_table(rows: Mapping[str, tuple[float, float]]) -> str:
    """A Markdown table: one row per quantity, its value before and after fusing."""
    cells = [('', 'train form', 'fused')]
    cells += [(name, _text(before), _text(after)) for name, (before, after) in rows.items()]
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    lines = [f'| {name:<{widths[0]}} | {before:>{widths[1]}} | {after:>{widths[2]}} |' for name, before, after in cells]
    rule = f'|{"-" * (widths[0] + 2)}|{"-" * (widths[1] + 1)}:|{"-" * (widths[2] + 1)}:|'
    return '\n'.join([lines[0], rule, *lines[1:]])


def format_score(value: float) -> str:
    """AP or IoU in 0..1, to the digits that fusing may not change."""
    return f'{value:.3f}'


def _text(value: float) -> str:
    if isinstance(value, int):
        return f'{value:,}'
    return format_score(value) if value < 1 else f'{value:.1f}'
