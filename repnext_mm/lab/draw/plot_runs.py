"""Losses and metrics of one or several trainings, a panel for each."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from repnext_mm.lab.draw.canvas import new_figure, save_png
from repnext_mm.lab.draw.run_logs import RunLog

COLOURS = ('#0000a7', '#e08a3c', '#008176', '#c1272d', '#8b5fbf', '#5a8f29', '#333333', '#c77cbb')
_COLUMNS = 3
_DOTS = 30  # more of them hide their line


def curve_names(runs: Sequence[RunLog], keys: Sequence[str] = ()) -> list[str]:
    """The curves to draw: those that match a key (``*`` stands for anything), or by default every loss and metric.

    Raises:
        ValueError: a key matches no curve.
    """
    trained = dict.fromkeys(name for run in runs for name in run.training)
    measured = dict.fromkeys(name for run in runs for name in run.validation)
    known = [*trained, *(name for name in measured if name not in trained)]
    if not keys:
        losses = sorted((name for name in trained if 'loss' in name), key=lambda name: name != 'loss')
        return [*losses, *(name for name in measured if name not in losses)]
    for key in keys:
        if not any(fnmatch(name, key) for name in known):
            raise ValueError(f"no curve is called '{key}': choose from {', '.join(known)}")
    return [name for name in known if any(fnmatch(name, key) for key in keys)]


def plot_runs(runs: Sequence[RunLog], path: str | Path, *, keys: Sequence[str] = (), title: str | None = None) -> Path:
    """Save a panel for each curve, a line for each run; beside a metric stand its last value and its best one.

    The horizontal axis counts epochs if all runs do, iterations otherwise.

    Raises:
        ValueError: there is nothing to draw, or one run counts epochs only and another iterations only.
    """
    if len({run.name for run in runs}) < len(runs):
        raise ValueError(f'runs named {[run.name for run in runs]} cannot be told apart: give each a name')
    if not runs:
        raise ValueError('no runs to draw: give at least one')
    names = curve_names(runs, keys)
    if not names:
        raise ValueError('the logs hold neither losses nor metrics: name curves with keys')
    in_epochs = all(run.epoch_length for run in runs)
    if not in_epochs and any(run.epochs_only for run in runs):
        epochs = ', '.join(run.name for run in runs if run.epochs_only)
        iterations = ', '.join(run.name for run in runs if not run.epoch_length)
        raise ValueError(
            f'{epochs} and {iterations} have no axis in common: draw logs of epochs only and logs of iterations only '
            'in a figure each'
        )
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(
        (4.4 * columns + 0.4, 3.0 * rows + 1.1), title or 'Training: ' + ', '.join(run.name for run in runs)
    )
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes, names, strict=False):
        _draw(axis, name, runs, in_epochs=in_epochs)
    handles: dict[str, Any] = {}
    for axis in axes[: len(names)]:
        for line in axis.lines:
            handles.setdefault(line.get_gid(), line)
    figure.legend(
        [handles[run.name] for run in runs if run.name in handles],
        [run.name for run in runs if run.name in handles],
        loc='outside lower center',
        ncols=min(4, len(runs)),
        frameon=False,
    )
    return save_png(figure, path)


def _draw(axis: Any, name: str, runs: Sequence[RunLog], *, in_epochs: bool) -> None:
    logged = ''
    values: dict[str, Any] = {}
    for index, run in enumerate(runs):
        measured = name in run.validation
        curve = run.validation[name] if measured else run.training.get(name)
        if not curve:
            continue
        length = (run.epoch_length or 1) if in_epochs else 1
        points = sorted(curve.items())
        (line,) = axis.plot(
            [iteration / length for iteration, _ in points],
            [value for _, value in points],
            color=COLOURS[index % len(COLOURS)],
            linewidth=1.4,
            gid=run.name,
            marker='o' if len(points) == 1 or (measured and len(points) <= _DOTS) else '',
            markersize=4,
            linestyle='-' if index < len(COLOURS) else '--',
        )
        logged = 'validation' if measured else 'training'
        if measured:
            values[_last_and_best(name, [value for _, value in points]) + ' ' * index] = line  # a key for each run
    if values:
        axis.legend(values.values(), values, fontsize=8, frameon=False, handlelength=1.2)
    axis.set_title(f'{name} ({logged})', fontsize=10)
    axis.set_xlabel('epoch' if in_epochs else 'iteration', fontsize=9)
    axis.set_ylabel('loss, as logged' if 'loss' in name else 'value, as logged', fontsize=9)
    axis.margins(y=0.15)
    axis.grid(alpha=0.3)


def _last_and_best(name: str, values: Sequence[float]) -> str:
    best = min(values) if 'loss' in name else max(values)
    return f'{best:.4g}' if best == values[-1] else f'last {values[-1]:.4g}, best {best:.4g}'
