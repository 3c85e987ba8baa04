"""Trainings as curves, put together from their logs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from repnext_mm.lab.draw.log_formats import Log, read_log

_PLACES = ('vis_data/scalars.json', '*/vis_data/scalars.json', '*.log.json', 'log.txt', 'summary.csv')


@dataclass(kw_only=True)
class RunLog:
    """A training's curves: values by iteration."""

    name: str
    training: dict[str, dict[int, float]] = field(default_factory=dict)  # losses, learning rate
    validation: dict[str, dict[int, float]] = field(default_factory=dict)  # metrics
    epoch_length: int | None = None  # iterations; None for a run that counts no epochs
    epochs_only: bool = False  # an iteration is an epoch here: the log says no more


def read_run(path: str | Path, *, name: str | None = None) -> RunLog:
    """Read a log, or all logs of a working directory, where a resumed run replaces what it repeats.

    Logs are mmengine's (``vis_data/scalars.json``), mmcv 1.x's (``*.log.json``), the authors' JSON lines (``log.txt``)
    and timm's ``summary.csv``; a file may have any name. The curves are called as mmengine's are.

    Raises:
        FileNotFoundError: there is no log of a training.
        ValueError: a file is not such a log.
    """
    path = Path(path)
    run = RunLog(name=name or _name(path))
    for file in [path] if path.is_file() else _files(path):
        log = read_log(file)
        if log.training:  # otherwise a test's
            _add(run, log)
    if not (run.training or run.validation):
        raise FileNotFoundError(
            f"'{path}' holds no log of a training: give a working directory, or a log such as its "
            'TIME/vis_data/scalars.json'
        )
    return run


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
