"""Charts of accuracy against latency, reported and measured, and against the length of training."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from repnext_mm.errors import UserError
from repnext_mm.lab.bench.networks import PEER_FORM, REFERENCE_FORM, TRAIN_FORM
from repnext_mm.lab.bench.published import COMPACT, REPORTED, Reported
from repnext_mm.lab.bench.record import Record
from repnext_mm.lab.bench.tables import Row, Setting, settings
from repnext_mm.lab.draw.canvas import COLORS, legend_below, new_figure, save_png

METRICS: dict[str, Callable[[Reported], float | None]] = {
    'ImageNet top-1, %': lambda reported: reported.top1,
    'COCO box AP, Mask R-CNN 1x': lambda reported: reported.box_ap,
    'ADE20K mIoU, Semantic FPN, %': lambda reported: reported.miou,
}
TOP1 = next(iter(METRICS))
REPORTED_LINE, REPORTED_E = 'RepNeXt, as reported', "RepNeXt E, as reported (StarNet's recipe)"
REPORTED_PLAIN = 'RepNeXt without distillation, as reported'
FASTEST, TRAIN = 'RepNeXt, fastest fused form', 'RepNeXt, train form'
REFERENCE = f'RepNeXt, {REFERENCE_FORM} (as the authors fuse)'
FLOOR = 'RepNeXt, its 1x1 convolutions alone, at the measured rate'
STYLES: dict[str, dict[str, Any]] = {  # in the order of the legend
    REPORTED_LINE: dict(color=COLORS['red'], marker='o', linewidth=2, zorder=5),
    REPORTED_E: dict(color=COLORS['pink'], marker='o', linestyle='--'),
    REPORTED_PLAIN: dict(color=COLORS['red'], marker='o', linestyle=':', markerfacecolor='white', zorder=4),
    FASTEST: dict(color=COLORS['red'], marker='o', linewidth=2, zorder=5),
    REFERENCE: dict(color=COLORS['orange'], marker='s', linestyle='--'),
    TRAIN: dict(color=COLORS['gray'], marker='x', linestyle=':'),
    FLOOR: dict(color=COLORS['red'], marker='|', linestyle=':', alpha=0.6),
    'RepViT': dict(color=COLORS['blue'], marker='^'),
    'FastViT': dict(color=COLORS['teal'], marker='v'),
    'MobileOne': dict(color=COLORS['purple'], marker='D'),
    'StarNet': dict(color=COLORS['green'], marker='*'),
    'MobileViG': dict(color='#b8860b', marker='<'),
    'SwiftFormer': dict(color='#2f7fbf', marker='>'),
    'EfficientFormer': dict(color='#7f4f24', marker='p'),
    'EfficientFormerV2': dict(color='#d05a8a', marker='h'),
    'MobileNetV4': dict(color='#8a6d9c', marker='d'),
    'ResNet': dict(color=COLORS['ink'], marker='P'),
}
CORNERS = ((5, -10), (5, 4), (-5, -10), (-5, 5), (0, 7), (0, -13))  # of a name from its point, the first that is free
CORNERS_OF_OURS = ((-5, 5), (0, 7), (-5, -10), (5, 4), (5, -10), (0, -13))
MARKER_PX = 8
UNNAMED = (REPORTED_PLAIN, TRAIN, REFERENCE, FLOOR)  # the same networks in the same order, named at another line


class Point(NamedTuple):
    """One network in a panel."""

    label: str
    latency_ms: float
    accuracy: float


class Panel(NamedTuple):
    """Lines of networks that were timed alike."""

    title: str
    metric: str  # a key of METRICS
    lines: Mapping[str, Sequence[Point]]  # by the keys of STYLES, from the fastest to the slowest network


def plot_record(record: Record, stem: str | os.PathLike[str]) -> list[Path]:
    """Save ``STEM.RUNTIME.png`` for each runtime with anything to draw: a row for each setting, a column per metric.

    A runtime with several precisions has a ``STEM.RUNTIME.DTYPE.png`` for each.
    """
    found = {setting: rows for setting, rows in settings(record).items() if setting.mode == 'latency'}
    stem, files = Path(stem), []
    for runtime, dtype in dict.fromkeys((setting.runtime, setting.dtype) for setting in found):
        grid = [
            [measured_panel(setting, rows, metric) for metric in METRICS]
            for setting, rows in found.items()
            if (setting.runtime, setting.dtype) == (runtime, dtype)
        ]
        several = len({setting.dtype for setting in found if setting.runtime == runtime}) > 1
        name = f'{runtime}.{dtype}' if several else runtime
        title = f'Measured latency against reported accuracy\n{runtime}, {_where(record)}'
        if any(panel.lines for row in grid for panel in row):
            files.append(_draw_grid(grid, title, stem.with_name(f'{stem.name}.{name}.png')))
    return files


def plot_zoo(records: Sequence[Record], path: str | Path, *, metrics: Sequence[str] = (TOP1,)) -> Path:
    """Save a row for each metric: the reported panel first, then one for each measured setting.

    Args:
        records: of ``tools/benchmark.py``.
        path: of the PNG.
        metrics: keys of ``METRICS``.

    Raises:
        UserError: a metric is unknown.
    """
    for metric in metrics:
        if metric not in METRICS:
            raise UserError(f"metric '{metric}' is unknown: choose from {', '.join(METRICS)}")
    rows = [
        [reported_panel(metric), *(panel for record in records for panel in measured_panels(record, metric))]
        for metric in metrics
    ]
    return _draw_grid(rows, 'Accuracy, as reported, against latency, as reported and as measured', path)


def plot_lengths(path: str | Path) -> Path:
    """Save a panel for each data set: the best top-1 of trainings of 100, 200, 300 and 400 epochs."""
    styles = {'RepNeXt-M0': STYLES[REPORTED_LINE], 'RepNeXt-M0E': STYLES[REPORTED_E], 'RepViT-M0.6': STYLES['RepViT']}
    figure = new_figure((6.0 * len(COMPACT) + 0.5, 5.2), 'Best top-1 against the length of training, as reported')
    for axis, (data, models) in zip(figure.subplots(1, len(COMPACT), squeeze=False)[0], COMPACT.items(), strict=True):
        for model in models:
            label = f'{model.name}: {model.parameters_m:.1f} M, {model.macs_g:.2f} GMACs, {model.phone_ms:.1f} ms'
            axis.plot(list(model.top1), list(model.top1.values()), label=label, **styles[model.name])
        axis.set_xticks(list(models[0].top1))
        axis.set_title(data, fontsize=10)
        axis.set(xlabel='epochs of the whole training', ylabel='best top-1, %')
        axis.legend(loc='lower right', fontsize=8.5)
        axis.grid(alpha=0.3)
    return save_png(figure, path)


def reported_panel(metric: str) -> Panel:
    """Reported accuracy against reported latency."""
    top1 = metric == TOP1
    lines: dict[str, list[Point]] = {}
    for name, reported in REPORTED.items():
        ours = REPORTED_E if name.endswith('e') else REPORTED_LINE
        line = ours if reported.family == 'RepNeXt' else reported.family
        found = [(reported, reported.phone_ms if top1 else reported.phone_512_ms)]
        lines.setdefault(line, []).extend(_points(found, METRICS[metric]))
    if top1:
        plain = [(reported, reported.phone_plain_ms) for reported in REPORTED.values()]
        lines[REPORTED_PLAIN] = _points(plain, lambda reported: reported.top1_plain)
    title = f'reported: iPhone 12, Core ML, {"224x224" if top1 else "512x512, backbone"}'
    return Panel(title, metric, {name: points for name, points in lines.items() if points})


def measured_panels(record: Record, metric: str) -> list[Panel]:
    """Reported accuracy against measured latency, a panel for each setting of a record that has both."""
    panels = [
        measured_panel(setting, rows, metric, where=f'measured: {_where(record)},\n{setting.runtime}, ')
        for setting, rows in settings(record).items()
        if setting.mode == 'latency'
    ]
    return [panel for panel in panels if panel.lines]


def measured_panel(setting: Setting, rows: Sequence[Row], metric: str, *, where: str = '') -> Panel:
    """Reported accuracy against measured latency of one setting."""
    shape = 'x'.join(map(str, setting.shape))
    found = series(rows)
    lines = {
        name: _points(
            [(row.reported, row.time.median_ms) for row in line],
            METRICS[metric],
            forms=[row.form for row in line] if name == FASTEST else (),
        )
        for name, line in found.items()
    }
    lines[FLOOR] = _points([(row.reported, row.floor_ms) for row in found.get(FASTEST, ())], METRICS[metric])
    return Panel(
        f'{where}{shape}, {setting.dtype}, {setting.memory_format}',
        metric,
        {name: points for name, points in lines.items() if points},
    )


def series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows as the lines of a chart, each from the fastest to the slowest network."""
    found: dict[str, list[Row]] = {}
    fastest: dict[str, Row] = {}
    for row in rows:
        if row.form == PEER_FORM:
            found.setdefault(row.reported.family, []).append(row)
        elif row.form == TRAIN_FORM:
            found.setdefault(TRAIN, []).append(row)
        else:
            if row.form == REFERENCE_FORM:
                found.setdefault(REFERENCE, []).append(row)
            fastest[row.model] = min(fastest.get(row.model, row), row, key=lambda other: other.time.median_ms)
    if fastest:
        found[FASTEST] = list(fastest.values())
    return {name: sorted(line, key=lambda row: row.time.median_ms) for name, line in found.items()}


def _points(
    found: Sequence[tuple[Reported, float | None]],
    accuracy_of: Callable[[Reported], float | None],
    *,
    forms: Sequence[str] = (),
) -> list[Point]:
    """Networks with a latency and an accuracy; their forms are named where these differ."""
    ends = [f' ({form})' for form in forms] if len(set(forms)) > 1 else [''] * len(found)
    return [
        Point(reported.label.removeprefix(f'{reported.family} ') + end, latency_ms, accuracy)
        for (reported, latency_ms), end in zip(found, ends, strict=True)
        if latency_ms is not None and (accuracy := accuracy_of(reported)) is not None
    ]


def _where(record: Record) -> str:
    where = str(record['environment'].get('device'))
    on_gpu = record['settings'].get('device') == 'cuda'
    return where if on_gpu else f'{where}, CPU threads: {record["environment"].get("threads")}'


def _draw_grid(rows: Sequence[Sequence[Panel]], title: str, path: str | Path) -> Path:
    """Save panels in rows and columns; columns in which nothing is to be drawn are left out."""
    drawn = {column for row in rows for column, panel in enumerate(row) if panel.lines}
    rows = [[panel for column, panel in enumerate(row) if column in drawn] for row in rows]
    columns = max(map(len, rows))
    figure = new_figure((6.0 * columns + 0.5, 5.4 * len(rows) + 1.2), title)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for axis in line:
            axis.set_visible(False)
        for axis, panel in zip(line, row, strict=False):
            if panel.lines:
                axis.set_visible(True)
                _draw(axis, panel)
    legend_below(figure, order=STYLES, columns=min(5, 2 * columns))
    figure.draw_without_rendering()  # sets the places of the points, from which names keep away
    for line, row in zip(axes, rows, strict=True):
        for axis, panel in zip(line, row, strict=False):
            if panel.lines:
                name_points(axis, panel)
    return save_png(figure, path)


def name_points(axis: Any, panel: Panel) -> list[Any]:
    """Write each network's name at the corner of its point where it covers the least of other names and points."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    halo = [withStroke(linewidth=2, foreground='white')]  # names stay readable where lines cross them
    drawn = axis.transData.transform([point[1:] for points in panel.lines.values() for point in points])
    taken = [Bbox.from_bounds(x - MARKER_PX / 2, y - MARKER_PX / 2, MARKER_PX, MARKER_PX) for x, y in drawn]
    texts = []
    for name, points in panel.lines.items():
        for point in points if name not in UNNAMED else ():
            text = axis.annotate(
                point.label,
                (point.latency_ms, point.accuracy),
                xytext=(0, 0),
                textcoords='offset points',
                fontsize=7.5,
                color=STYLES[name]['color'],
                path_effects=halo,
                zorder=7 if name.startswith('RepNeXt') else 6,
            )
            covered = {}
            for corner in CORNERS_OF_OURS if name.startswith('RepNeXt') else CORNERS:
                box = _placed(text, corner)
                common = (Bbox.intersection(box, other) for other in taken)
                covered[corner] = sum(other.width * other.height for other in common if other is not None)
            taken.append(_placed(text, min(covered, key=covered.__getitem__)))
            texts.append(text)
    return texts


def _placed(text: Any, corner: tuple[int, int]) -> Any:
    """Move a name to a corner, in points; gives the box that it covers there, in pixels."""
    text.xyann = corner
    text.set_horizontalalignment('left' if corner[0] > 0 else 'right' if corner[0] < 0 else 'center')
    return text.get_window_extent()


def _draw(axis: Any, panel: Panel) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_xscale('log')
    for name, points in panel.lines.items():
        points = sorted(points, key=lambda point: point.latency_ms)
        axis.plot(
            [point.latency_ms for point in points], [point.accuracy for point in points], label=name, **STYLES[name]
        )
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.xaxis.set_major_formatter('{x:g}')
    axis.xaxis.set_minor_locator(NullLocator())
    axis.margins(x=0.15, y=0.12)
    axis.set_title(panel.title, fontsize=10)
    axis.set(xlabel='latency, ms, log scale (left is better)', ylabel=panel.metric)
    axis.grid(alpha=0.3)
