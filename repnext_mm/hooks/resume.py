"""The checkpoint that a stopped run goes on from: the newest whole one."""

from __future__ import annotations

import glob
import os
import re
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from repnext_mm.checkpoints import is_whole_file
from repnext_mm.errors import UserError

USUAL = ('epoch_{}.pth', 'iter_{}.pth')  # mmengine's own templates: a run may have counted otherwise before
_BASES = (10, 16, 8, 2)  # that a template can write numbers in


class NoWholeCheckpointError(UserError):
    """There was a checkpoint to go on from, and none is whole."""


class Choice(NamedTuple):
    """A checkpoint to go on from."""

    path: str | None  # None: there is none
    note: str = ''  # why it is not the one that the run recorded last


class _Found(NamedTuple):
    time_ns: int
    step: int
    path: Path
    template: str


def newest_whole(*, work_dir: Path, folder: Path, template: str) -> Choice:
    """Choose the checkpoint that ``last_checkpoint`` names, unless it is torn, missing, or not the newest.

    Args:
        work_dir: where ``last_checkpoint`` lies. What it names may have moved with the run.
        folder: where checkpoints lie.
        template: their name, ``epoch_{}.pth`` or any other that ``str.format`` takes, folders included; mmengine's own
            are looked for too. Other files (the best one, published ones) hold no state to go on from.

    Raises:
        NoWholeCheckpointError: there was a checkpoint, and there is no whole one.
    """
    record = work_dir / 'last_checkpoint'
    recorded = record.read_text(errors='replace').strip() if record.is_file() else None
    if recorded is not None and '://' in recorded:
        return Choice(recorded)  # in a store, which keeps whole files only
    found = _found(folder, (template, *USUAL))
    here = next((file for file in found if recorded and _is_named(file, recorded, folder)), None)
    if here is not None and is_whole(here.path):  # also when the run has moved, and the old place is still there
        written_ns = record.stat().st_mtime_ns
        moved = (
            ''
            if here.path.resolve() == Path(str(recorded)).resolve()
            else (f"last_checkpoint names '{recorded}', in another folder: '{here.path}' has its name")
        )
        for later in found:
            newer = later.template == here.template and later.step > here.step and later.time_ns >= written_ns
            if newer and is_whole(later.path):
                return Choice(
                    str(later.path),
                    f"'{later.path.name}' is newer than '{here.path.name}', which last_checkpoint names: the run "
                    'was stopped before it recorded the newer one, and goes on from that',
                )
        return Choice(str(here.path) if moved else recorded, moved)
    if recorded and is_whole(recorded):
        return Choice(recorded)
    newest = next((str(candidate.path) for candidate in found if is_whole(candidate.path)), None)
    if recorded is None:
        return Choice(newest, '' if newest is None else f"there is no last_checkpoint: '{newest}' is the newest")
    if newest is None:
        raise NoWholeCheckpointError(
            f"last_checkpoint names '{recorded[:300]}', which is missing or torn, and '{folder}' holds no whole "
            f"checkpoint: restore one, or delete '{record}' to start from scratch"
        )
    return Choice(
        newest,
        f"last_checkpoint names '{recorded[:300]}', which is missing or torn: '{newest}' is the newest whole one",
    )


def is_whole(path: str | Path) -> bool:
    """Whether a checkpoint is there to its last byte: its archive ends where it should, and all check sums agree.

    torch itself compares no check sums: what a power cut filled with zeros would load. A folder, which some strategies
    write, counts as whole; so does an archive that was saved without check sums, when nothing else is wrong with it.
    """
    return os.path.isdir(path) or is_whole_file(path)


def step_of(name: str, template: str) -> int | None:
    """The step that a checkpoint's name was made of, 0 where the template has none; None for another name."""
    pattern = ''.join(re.escape(text) + ('' if field is None else '(.{1,30}?)') for text, field in _parsed(template))
    match = re.fullmatch(pattern, name)
    if match is None:
        return None
    written = match[1].strip().replace(',', '').replace('_', '') if match.groups() else '0'
    for base in _BASES:
        try:
            step = int(written, base)
        except ValueError:
            continue
        if template.format(step) == name:
            return step
    return None


def has_begun(*, work_dir: Path, folder: Path, template: str) -> bool:
    """Whether there may be a checkpoint to go on from."""
    return (work_dir / 'last_checkpoint').exists() or any(_candidates(folder, (template, *USUAL)))


def _found(folder: Path, templates: Sequence[str]) -> list[_Found]:
    """Checkpoints by the time they were written, newest first: a folder can hold higher steps of an older run."""
    found: dict[Path, _Found] = {}
    for template, path in _candidates(folder, templates):
        step = step_of(path.relative_to(folder).as_posix(), template)
        if step is not None:
            found.setdefault(path, _Found(path.stat().st_mtime_ns, step, path, template))
    return sorted(found.values(), reverse=True)


def _candidates(folder: Path, templates: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for template in dict.fromkeys(templates):
        pattern = ''.join(glob.escape(text) + ('' if field is None else '*') for text, field in _parsed(template))
        for path in folder.glob(pattern) if pattern else ():
            yield template, path


def _parsed(template: str) -> list[tuple[str, str | None]]:
    """The texts of a template, each with the field that follows it, if one does."""
    return [(text, field) for text, field, _, _ in string.Formatter().parse(template)]


def _is_named(file: _Found, recorded: str, folder: Path) -> bool:
    """Whether a record ends as a checkpoint's name below the folder does."""
    name = file.path.relative_to(folder).parts
    return Path(recorded).parts[-len(name) :] == name
