"""Accuracy against latency: as reported by the authors, on a phone, and as measured here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from repnext_mm.lab.bench.plot import FASTEST, METRICS, STYLES, series
from repnext_mm.lab.bench.published import PHONE_512_MS, PHONE_MS, PHONE_PLAIN_MS, REPORTED
from repnext_mm.lab.bench.record import Record
from repnext_mm.lab.bench.report import settings
from repnext_mm.lab.draw.canvas import new_figure, save_png

_TOP1 = 'ImageNet top-1, %'
_OURS, _OURS_E = 'RepNeXt, as reported', "RepNeXt E, as reported (StarNet's recipe)"
_OURS_PLAIN = 'RepNeXt without distillation, as reported'
_LINES: dict[str, dict[str, Any]] = {
    _OURS: dict(color='#c1272d', marker='o', linewidth=2, zorder=5),
    _OURS_E: dict(color='#c77cbb', marker='o', linestyle='--'),
    _OURS_PLAIN: dict(color='#c1272d', marker='o', linestyle=':', markerfacecolor='white', zorder=4),
    **STYLES,
}


class Point(NamedTuple):
    """One network in a panel."""

    label: str
    latency_ms: float
    accuracy: float


class Panel(NamedTuple):
    """Lines of networks that were timed alike."""

    title: str
    lines: dict[str, list[Point]]


def reported_panel(metric: str) -> Panel:
    """Reported accuracy against reported latency; the metric is a key of ``benchmark.plot.METRICS``."""
    times = PHONE_MS if metric == _TOP1 else PHONE_512_MS
    lines: dict[str, list[Point]] = {}
    for name, latency_ms in times.items():
        reported = REPORTED[name]
        accuracy = METRICS[metric](reported)
        if accuracy is not None:
            line = reported.family if reported.family != 'RepNeXt' else _OURS_E if name.endswith('e') else _OURS
            label = reported.label.removeprefix(f'{reported.family} ')
            lines.setdefault(line, []).append(Point(label, latency_ms, accuracy))
    if metric == _TOP1:
        lines[_OURS_PLAIN] = [
            Point(REPORTED[name].label, latency_ms, plain)
            for name, latency_ms in PHONE_PLAIN_MS.items()
            if (plain := REPORTED[name].top1_plain) is not None
        ]
    size = 224 if metric == _TOP1 else 512
    return Panel(f'reported: iPhone 12, Core ML, {size}x{size}' + ('' if metric == _TOP1 else ', backbone'), lines)


def measured_panels(record: Record, metric: str) -> list[Panel]:
    """Reported accuracy against measured latency, a panel for each setting of a record."""
    environment, found = record['environment'], []
    where = str(environment.get('device'))
    if record['settings'].get('device') != 'cuda':
        where += f', CPU threads: {environment.get("threads")}'
    for setting, rows in settings(record).items():
        lines = {
            name: [
                Point(row.reported.label.removeprefix(f'{row.reported.family} '), row.median_ms, accuracy)
                for row in line
                if (accuracy := METRICS[metric](row.reported)) is not None
            ]
            for name, line in series(rows).items()
        }
        lines = {name: points for name, points in lines.items() if points}
        if setting.mode == 'latency' and lines:
            shape = 'x'.join(map(str, setting.shape))
            found.append(
                Panel(
                    f'measured: {where},\n{setting.runtime}, {shape}, {setting.dtype}, {setting.memory_format}', lines
                )
            )
    return found


def plot_zoo(records: Sequence[Record], path: str | Path, *, metrics: Sequence[str] = (_TOP1,)) -> Path:
    """Save a row for each metric: the reported panel first, then one for each measured setting.

    Args:
        records: of ``tools/benchmark.py``.
        path: of the PNG.
        metrics: keys of ``benchmark.plot.METRICS``.

    Raises:
        ValueError: a metric is unknown.
    """
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(f"metric '{metric}' is unknown: choose from {', '.join(METRICS)}")
    rows = {
        metric: [reported_panel(metric), *(panel for record in records for panel in measured_panels(record, metric))]
        for metric in metrics
    }
    columns = max(map(len, rows.values()))
    title = 'Accuracy, as reported, against latency, as reported and as measured'
    figure = new_figure((6.0 * columns + 0.5, 6.0 * len(rows) + 1.0), title)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    used = dict.fromkeys(name for panels in rows.values() for panel in panels for name in panel.lines)
    for line, (metric, panels) in zip(axes, rows.items(), strict=True):
        for axis in line[len(panels) :]:
            axis.set_visible(False)
        for axis, panel in zip(line, panels, strict=False):
            _draw(axis, panel, metric)
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    names = [name for name in _LINES if name in used]
    figure.legend(
        [handles[name] for name in names], names, loc='outside lower center', ncols=min(5, len(names)), fontsize=9
    )
    return save_png(figure, path)


def _draw(axis: Any, panel: Panel, metric: str) -> None:
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import LogLocator, NullLocator

    halo = [withStroke(linewidth=2, foreground='white')]  # names stay readable where lines cross them
    axis.set_xscale('log')
    for name, points in panel.lines.items():
        points = sorted(points, key=lambda point: point.latency_ms)
        style = _LINES[name]
        axis.plot([point.latency_ms for point in points], [point.accuracy for point in points], label=name, **style)
        ours = name.startswith('RepNeXt')
        if name == _OURS_PLAIN or (ours and name in STYLES and name != FASTEST):
            continue  # the same networks in the same order, named at another line
        for point in points:
            axis.annotate(
                point.label,
                (point.latency_ms, point.accuracy),
                textcoords='offset points',
                xytext=(-5, 5) if ours else (5, -10),
                ha='right' if ours else 'left',
                fontsize=7.5,
                color=style['color'],
                path_effects=halo,
                zorder=7 if ours else 6,
            )
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.xaxis.set_major_formatter('{x:g}')
    axis.xaxis.set_minor_locator(NullLocator())
    axis.margins(x=0.15, y=0.12)
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel('latency, ms, log scale (left is better)')
    axis.set_ylabel(metric)
    axis.grid(alpha=0.3)
