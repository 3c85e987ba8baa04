"""Trainings as curves: the logs that they leave, put together by run and drawn, a panel for each loss or metric.

Logs are mmengine's, mmcv 1.x's, the JSON lines of DeiT's script and kin, and timm's CSV. Curves get the names of
OpenMMLab 2.x, and percentages where that has them, so that all of them can be drawn together.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from repnext_mm.errors import UserError
from repnext_mm.lab.draw.canvas import COLORS, legend_below, new_figure, save_png

Points = list[tuple[int, dict[str, float]]]  # iteration, values

LINES = tuple(COLORS[name] for name in ('blue', 'orange', 'teal', 'red', 'purple', 'green', 'ink', 'pink'))
_COLUMNS = 3
_DOTS = 30  # more of them hide their line
_PLACES = ('vis_data/scalars.json', '*/vis_data/scalars.json', '*.log.json', 'log.txt', 'summary.csv')
_NO_CURVES = {'iter', 'epoch', 'step', 'time', 'data_time', 'memory', 'base_lr', 'mode', 'n_parameters'}
_BY_EPOCH = {  # DeiT's names and timm's
    'train_loss': 'loss',
    'train_lr': 'lr',
    'lr': 'lr',
    'test_loss': 'val/loss',
    'eval_loss': 'val/loss',
    'test_acc1': 'accuracy/top1',
    'test_acc5': 'accuracy/top5',
    'eval_top1': 'accuracy/top1',
    'eval_top5': 'accuracy/top5',
}
_TRAINING = {'loss', 'lr'}
_MMCV1 = {'accuracy_top-1': 'accuracy/top1', 'accuracy_top-5': 'accuracy/top5'}
_FRACTIONS = {'aAcc', 'mIoU', 'mAcc'}  # in percent since mmseg 1.x
_KNOWN = (
    "give mmengine's vis_data/scalars.json, mmcv 1.x's .log.json, JSON lines of DeiT's kind (epoch, train_loss, "
    "test_acc1) or timm's summary.csv (epoch, train_loss, eval_top1)"
)


@dataclass(kw_only=True)
class RunLog:
    """A training's curves: values by iteration."""

    name: str
    training: dict[str, dict[int, float]] = field(default_factory=dict)  # losses, learning rate
    validation: dict[str, dict[int, float]] = field(default_factory=dict)  # metrics
    epoch_length: int | None = None  # iterations; None for a run that counts no epochs
    epochs_only: bool = False  # an iteration is an epoch here: the log says no more


class Log(NamedTuple):
    """What one file holds."""

    training: Points
    validation: Points  # counted in epochs, if the length of one is known
    epoch_length: int | None  # iterations; None for a run that counts no epochs
    epochs_only: bool = False  # then a step is an epoch


def read_run(path: str | Path, *, name: str | None = None) -> RunLog:
    """Read a log, or all logs of a working directory, where a resumed run replaces what it repeats.

    Logs are mmengine's (``vis_data/scalars.json``), mmcv 1.x's (``*.log.json``), the authors' JSON lines (``log.txt``)
    and timm's ``summary.csv``; a file may have any name. The curves are called as mmengine's are.

    Raises:
        UserError: there is no log of a training, or a file is not such a log.
    """
    path = Path(path)
    run = RunLog(name=name or _name(path))
    for file in [path] if path.is_file() else _files(path):
        log = read_log(file)
        if log.training:  # otherwise a test's
            _add(run, log)
    if not (run.training or run.validation):
        raise UserError(
            f"'{path}' holds no log of a training: give a working directory, or a log such as its "
            'TIME/vis_data/scalars.json'
        )
    return run


def read_log(path: Path) -> Log:
    """Read a file in any of the four formats; a last line that is cut off, as a killed run leaves one, is ignored.

    Raises:
        UserError: the file is not such a log.
    """
    if path.suffix == '.csv':
        with path.open(newline='') as file:
            return _by_epoch(path, list(csv.DictReader(file)))
    lines = _json_lines(path)
    if any('step' in line for line in lines):
        return _mmengine(path, lines)
    if any('mode' in line for line in lines):
        return _mmcv1([line for line in lines if 'mode' in line])  # not its header
    return _by_epoch(path, lines)


def curve_names(runs: Sequence[RunLog], keys: Sequence[str] = ()) -> list[str]:
    """The curves to draw: those that match a key (``*`` stands for anything), or by default every loss and metric.

    Raises:
        UserError: a key matches no curve.
    """
    trained = dict.fromkeys(name for run in runs for name in run.training)
    measured = dict.fromkeys(name for run in runs for name in run.validation)
    known = [*trained, *(name for name in measured if name not in trained)]
    if not keys:
        losses = sorted((name for name in trained if 'loss' in name), key=lambda name: name != 'loss')
        return [*losses, *(name for name in measured if name not in losses)]
    for key in keys:
        if not any(fnmatch(name, key) for name in known):
            raise UserError(f"no curve is called '{key}': choose from {', '.join(known)}")
    return [name for name in known if any(fnmatch(name, key) for key in keys)]


def plot_runs(runs: Sequence[RunLog], path: str | Path, *, keys: Sequence[str] = (), title: str | None = None) -> Path:
    """Save a panel for each curve, a line for each run; beside a metric stand its last value and its best one.

    The horizontal axis counts epochs if all runs do, iterations otherwise.

    Raises:
        UserError: there is nothing to draw, or one run counts epochs only and another iterations only.
    """
    if len({run.name for run in runs}) < len(runs):
        raise UserError(f'runs named {[run.name for run in runs]} cannot be told apart: give each a name')
    if not runs:
        raise UserError('no runs to draw: give at least one')
    names = curve_names(runs, keys)
    if not names:
        raise UserError('the logs hold neither losses nor metrics: name curves with keys')
    in_epochs = all(run.epoch_length for run in runs)
    if not in_epochs and any(run.epochs_only for run in runs):
        epochs = ', '.join(run.name for run in runs if run.epochs_only)
        iterations = ', '.join(run.name for run in runs if not run.epoch_length)
        raise UserError(
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
    legend_below(figure, order=[run.name for run in runs])
    return save_png(figure, path)


def _files(folder: Path) -> list[Path]:
    """The logs of the first kind that is there."""
    ours = sorted(file for place in _PLACES[:2] for file in folder.glob(place))
    return ours or next((found for place in _PLACES[2:] if (found := sorted(folder.glob(place)))), [])


def _name(path: Path) -> str:
    if not path.is_file():
        return path.name
    return path.parents[1].name if path.name == 'scalars.json' and len(path.parts) > 2 else path.name.partition('.')[0]


def _add(run: RunLog, log: Log) -> None:
    start = log.training[0][0]
    for curves in (run.training, run.validation):
        for name, curve in list(curves.items()):
            curves[name] = {iteration: value for iteration, value in curve.items() if iteration < start}
            if not curves[name]:
                del curves[name]
    run.epochs_only = log.epochs_only
    if log.epoch_length is not None:
        run.epoch_length = max(run.epoch_length or 1, log.epoch_length)
    for iteration, values in log.training:
        for name, value in values.items():
            run.training.setdefault(name, {})[iteration] = value
    for step, values in log.validation:
        for name, value in values.items():
            run.validation.setdefault(name, {})[step * (run.epoch_length or 1)] = value


def _json_lines(path: Path) -> list[dict[str, Any]]:
    found = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # the run is writing, or was killed while it did
                break
            raise UserError(f"'{path}' line {number} is not JSON ({error}): {_KNOWN}") from error
        if not isinstance(value, dict):
            raise UserError(f"'{path}' line {number} is not a JSON object: {_KNOWN}")
        found.append(value)
    return found


def _mmengine(path: Path, lines: list[dict[str, Any]]) -> Log:
    for number, line in enumerate(lines, start=1):
        if 'step' not in line:
            raise UserError(f"'{path}' line {number} has no 'step', which mmengine writes into each: {_KNOWN}")
    training = [line for line in lines if 'iter' in line]
    length = None
    if training and 'epoch' in training[0]:
        # iteration i of epoch e lies in ((e - 1) n, e n], where n is what we look for
        length = max(1, *(math.ceil(line['iter'] / line['epoch']) for line in training))
    return Log(
        [(line['iter'], _values(line)) for line in training],
        [(line['step'], _values(line)) for line in lines if 'iter' not in line],
        length,
    )


def _mmcv1(lines: list[dict[str, Any]]) -> Log:
    """Iterations start anew in each epoch, and the last one logged passes for its length; or they never do.

    A line of validation counts the validation's iterations: where it stands is where the training is.
    """
    training = [line for line in lines if line['mode'] == 'train']
    starts = [
        line['iter']
        for line, before in zip(training[1:], training, strict=False)
        if line['epoch'] > before['epoch'] and line['iter'] <= before['iter']
    ]
    evaluations = sum(line['mode'] == 'val' for line in lines)
    by_epoch = bool(starts) or evaluations <= 1
    length = max((line['iter'] for line in training), default=1) if by_epoch else None
    found = Log([], [], length)
    done = 0
    for line in lines:
        if line['mode'] == 'train':
            done = line['iter'] + (line['epoch'] - 1) * length if length else line['iter']
            found.training.append((done, _values(line)))
        else:
            found.validation.append((line['epoch'] if length else done, _renamed(_values(line))))
    return found


def _renamed(values: Mapping[str, float]) -> dict[str, float]:
    found = {}
    for name, value in values.items():
        if name.startswith(('bbox_mAP', 'segm_mAP')):
            found[f'coco/{name}'] = value
        elif name in _FRACTIONS:
            found[name] = 100 * value
        elif name != 'lr' and not name.startswith(('IoU.', 'Acc.')):  # classes, of which there are 150
            found[_MMCV1.get(name, name)] = value
    return found


def _by_epoch(path: Path, lines: Iterable[Mapping[str, Any]]) -> Log:
    """One line an epoch, which counts from 0."""
    found = Log([], [], 1, epochs_only=True)
    for line in lines:
        values = {_BY_EPOCH[name]: value for name, value in line.items() if name in _BY_EPOCH}
        try:
            epoch = int(line['epoch']) + 1
            numbers = {name: float(value) for name, value in values.items() if value not in ('', None)}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"'{path}' has a line that is not an epoch's ({error!r}): {_KNOWN}") from error
        found.training.append((epoch, {name: value for name, value in numbers.items() if name in _TRAINING}))
        found.validation.append((epoch, {name: value for name, value in numbers.items() if name not in _TRAINING}))
    if not any(values for _, values in [*found.training, *found.validation]):
        raise UserError(f"'{path}' has neither losses nor accuracies: {_KNOWN}")
    return found


def _values(line: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in line.items()
        if name not in _NO_CURVES and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _draw(axis: Any, name: str, runs: Sequence[RunLog], *, in_epochs: bool) -> None:
    from matplotlib.ticker import MaxNLocator

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
            color=LINES[index % len(LINES)],
            linewidth=1.4,
            label=run.name,
            marker='o' if len(points) == 1 or (measured and len(points) <= _DOTS) else '',
            markersize=4,
            linestyle='-' if index < len(LINES) else '--',
        )
        logged = 'validation' if measured else 'training'
        if measured:
            values[_last_and_best(name, [value for _, value in points]) + ' ' * index] = line  # a key for each run
    if values:
        axis.legend(values.values(), values, fontsize=8, frameon=False, handlelength=1.2)
    axis.set_title(f'{name} ({logged})', fontsize=10)
    axis.set_xlabel('epoch' if in_epochs else 'iteration', fontsize=9)
    axis.set_ylabel('loss, as logged' if 'loss' in name else 'value, as logged', fontsize=9)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.margins(y=0.15)
    axis.grid(alpha=0.3)


def _last_and_best(name: str, values: Sequence[float]) -> str:
    best = min(values) if 'loss' in name else max(values)
    return f'{best:.4g}' if best == values[-1] else f'last {values[-1]:.4g}, best {best:.4g}'
