"""Profiles as Markdown: a column per network, a row per kind of operation or per module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from repnext_mm.lab.bench.hot_spots import HotSpots
from repnext_mm.lab.bench.operations import POINTWISE
from repnext_mm.lab.bench.training_spots import StepSpots

Spots = HotSpots | StepSpots
Table = Mapping[str, Mapping[str, float]]  # column, row -> milliseconds


def operations_table(found: Mapping[str, Spots]) -> str:
    """Where the time goes, then the latency without the profiler, then what the machine allows."""
    spots = list(found.values())
    lines = _lines({name: column.by_kind_ms for name, column in found.items()})
    lines += [
        _bold('sum of the above, profiled', [f'{sum(s.by_kind_ms.values()):.1f}' for s in spots]),
        _bold('latency, median', [f'{s.latency.median_ms:.1f}' for s in spots]),
        _bold('p10 to p90', [f'{s.latency.p10_ms:.1f} to {s.latency.p90_ms:.1f}' for s in spots]),
        _bold('arithmetic at the matrix rate', [f'{s.arithmetic_ms:.1f}' for s in spots]),
    ]
    inference = [s for s in spots if isinstance(s, HotSpots)]
    if inference:
        lines.append(_bold('convolutions at memory bandwidth', [f'{s.memory_ms:.1f}' for s in inference]))
    lines.append(_bold('profiled, were all but 1x1 convolutions free', [f'{_bound(s):.2f} x' for s in spots]))
    return '\n'.join(lines)


def modules_table(found: Table) -> str:
    """Where the time goes by module, in the order in which they run."""
    whole = _bold('whole call', [f'{sum(column.values()):.1f}' for column in found.values()])
    return '\n'.join([*_lines(found), whole])


def machine_line(found: Mapping[str, Spots]) -> str:
    """What the machine does at best, as measured beside the profile."""
    best = max(found.values(), key=lambda spots: spots.matrix_gflops)
    return f'{best.matrix_gflops:.0f} GFLOP/s in matrix products, {best.bandwidth_gbs:.0f} GB/s in copies'


def _bound(spots: Spots) -> float:
    """How many times faster the profiled operations would be if only 1x1 convolutions took time."""
    pointwise = spots.by_kind_ms.get(POINTWISE, 0.0)
    return sum(spots.by_kind_ms.values()) / pointwise if pointwise else float('inf')


def _lines(table: Table) -> list[str]:
    kinds = list(dict.fromkeys(kind for column in table.values() for kind in column))
    lines = [_row('', list(table)), _row('---', ['---:'] * len(table))]
    return lines + [_row(kind, [f'{column.get(kind, 0):.2f}' for column in table.values()]) for kind in kinds]


def _row(name: str, cells: Sequence[str]) -> str:
    return f'| {" | ".join([name, *cells])} |'


def _bold(name: str, cells: Sequence[str]) -> str:
    return _row(f'**{name}**', cells)
