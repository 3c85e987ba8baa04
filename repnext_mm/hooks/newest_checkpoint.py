"""The checkpoint that a stopped run goes on from: the newest whole one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from .whole_files import is_whole


class NoWholeCheckpointError(ValueError):
    """There was a checkpoint to go on from, and none is whole."""


class Choice(NamedTuple):
    """A checkpoint to go on from."""

    path: str | None  # None: there is none
    note: str = ''  # why it is not the one that the run recorded last


class _Found(NamedTuple):
    time_ns: int
    step: int
    path: Path


def newest_whole(*, work_dir: Path, folder: Path, template: str) -> Choice:
    """Choose the checkpoint that ``last_checkpoint`` names, unless it is torn, missing, or not the newest.

    Args:
        work_dir: where ``last_checkpoint`` lies.
        folder: where checkpoints lie.
        template: their name, ``epoch_{}.pth``; others (the best one, published ones) hold no state to go on from.

    Raises:
        NoWholeCheckpointError: there was a checkpoint, and there is no whole one.
    """
    record = work_dir / 'last_checkpoint'
    recorded = record.read_text(errors='replace').strip() if record.is_file() else None
    if recorded is not None and '://' in recorded:
        return Choice(recorded)  # in a store, which keeps whole files only
    found = _found(folder, template)
    if recorded and is_whole(recorded):
        step = _step(Path(recorded).name, template)
        written_ns = record.stat().st_mtime_ns
        for later in found:
            if step is not None and later.step > step and later.time_ns >= written_ns and is_whole(later.path):
                return Choice(
                    str(later.path),
                    f"'{later.path.name}' is newer than '{Path(recorded).name}', which last_checkpoint names: the run "
                    'was stopped before it recorded the newer one, and goes on from that',
                )
        return Choice(recorded)
    newest = next((str(candidate.path) for candidate in found if is_whole(candidate.path)), None)
    if recorded is None:
        return Choice(newest, '' if newest is None else f"there is no last_checkpoint: '{newest}' is the newest")
    if newest is None:
        raise NoWholeCheckpointError(
            f"last_checkpoint names '{recorded}', which is missing or torn, and '{folder}' holds no whole checkpoint: "
            f"bring one back, or remove '{record}' to start anew"
        )
    return Choice(
        newest, f"last_checkpoint names '{recorded}', which is missing or torn: '{newest}' is the newest whole one"
    )


def _found(folder: Path, template: str) -> list[_Found]:
    """Checkpoints by the time they were written, newest first: a folder can hold higher steps of an older run."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        step = _step(path.name, template)
        if step is not None:
            found.append(_Found(path.stat().st_mtime_ns, step, path))
    return sorted(found, reverse=True)


def _step(name: str, template: str) -> int | None:
    start, _, end = template.partition('{}')
    match = re.fullmatch(f'{re.escape(start)}([0-9]+){re.escape(end)}', name)
    return None if match is None else int(match[1])
