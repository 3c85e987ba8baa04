"""The logs that trainings leave: mmengine's, mmcv 1.x's, the JSON lines of DeiT's script and kin, timm's CSV.

Curves get the names of OpenMMLab 2.x, and percentages where that has them, so that all of them can be drawn together.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Points = list[tuple[int, dict[str, float]]]  # iteration, values

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


class Log(NamedTuple):
    """What one file holds."""

    training: Points
    validation: Points  # counted in epochs, if the length of one is known
    epoch_length: int | None  # iterations; None for a run that counts no epochs
    epochs_only: bool = False  # then a step is an epoch


def read_log(path: Path) -> Log:
    """Read a file in any of the four formats; a last line that is cut off, as a killed run leaves one, is ignored.

    Raises:
        ValueError: the file is not such a log.
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
            raise ValueError(f"'{path}' line {number} is not JSON ({error}): {_KNOWN}") from error
        if not isinstance(value, dict):
            raise ValueError(f"'{path}' line {number} is not a JSON object: {_KNOWN}")
        found.append(value)
    return found


def _mmengine(path: Path, lines: list[dict[str, Any]]) -> Log:
    for number, line in enumerate(lines, start=1):
        if 'step' not in line:
            raise ValueError(f"'{path}' line {number} has no 'step', which mmengine writes into each: {_KNOWN}")
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
            raise ValueError(f"'{path}' has a line that is not an epoch's ({error!r}): {_KNOWN}") from error
        found.training.append((epoch, {name: value for name, value in numbers.items() if name in _TRAINING}))
        found.validation.append((epoch, {name: value for name, value in numbers.items() if name not in _TRAINING}))
    if not any(values for _, values in [*found.training, *found.validation]):
        raise ValueError(f"'{path}' has neither losses nor accuracies: {_KNOWN}")
    return found


def _values(line: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in line.items()
        if name not in _NO_CURVES and isinstance(value, int | float) and not isinstance(value, bool)
    }
