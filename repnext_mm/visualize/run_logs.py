"""Reading mmengine's logs (``vis_data/scalars.json``) as curves."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NO_CURVES = {'iter', 'epoch', 'step', 'time', 'data_time', 'memory', 'base_lr'}


@dataclass(kw_only=True)
class RunLog:
    """A training's curves: values by iteration."""

    name: str
    training: dict[str, dict[int, float]] = field(default_factory=dict)  # losses, learning rate
    validation: dict[str, dict[int, float]] = field(default_factory=dict)  # metrics
    epoch_length: int | None = None  # iterations; None for a run that counts no epochs


def read_run(path: str | Path, *, name: str | None = None) -> RunLog:
    """Read a ``scalars.json``, or all logs of a working directory, where a resumed run replaces what it repeats.

    Raises:
        FileNotFoundError: there is no log of a training.
        ValueError: a file is no such log.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted([*path.glob('vis_data/scalars.json'), *path.glob(
        '*/vis_data/scalars.json')])  # fmt: skip
    run = RunLog(name=name or (path.parents[1].name if path.is_file() and len(path.parts) > 2 else path.name))
    for file in files:
        lines = _read_lines(file)
        if any('iter' in line for line in lines):  # otherwise a test's
            _add(run, lines)
    if not run.training:
        raise FileNotFoundError(
            f"'{path}' holds no log of a training: give a working directory, or its TIME/vis_data/scalars.json"
        )
    return run


def _read_lines(path: Path) -> list[dict[str, Any]]:
    found = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # the run is writing, or was killed while it did
                break
            raise ValueError(f"'{path}' line {number} is no JSON ({error}): give mmengine's scalars.json") from error
        if not isinstance(value, dict) or 'step' not in value:
            raise ValueError(f"'{path}' line {number} has no 'step': give mmengine's vis_data/scalars.json")
        found.append(value)
    return found


def _add(run: RunLog, lines: list[dict[str, Any]]) -> None:
    training = [line for line in lines if 'iter' in line]
    start = training[0]['iter']
    for curves in (run.training, run.validation):
        for name, curve in list(curves.items()):
            curves[name] = {iteration: value for iteration, value in curve.items() if iteration < start}
            if not curves[name]:
                del curves[name]
    if 'epoch' in training[0]:
        # iteration i of epoch e lies in ((e - 1) n, e n], where n is what we look for
        run.epoch_length = max(run.epoch_length or 1, *(math.ceil(line['iter'] / line['epoch']) for line in training))
    for line in lines:
        is_training = 'iter' in line
        iteration = line['iter'] if is_training else line['step'] * (run.epoch_length or 1)  # it counts epochs
        for name, value in line.items():
            if name not in _NO_CURVES and isinstance(value, int | float):
                curves = run.training if is_training else run.validation
                curves.setdefault(name, {})[iteration] = float(value)
