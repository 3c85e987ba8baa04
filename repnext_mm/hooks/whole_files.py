"""Files that are whole or absent: written beside their place, forced to the disk, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from repnext_mm.checkpoints import is_whole_file

DRAFT_SUFFIX = '.repnext-draft'


def draft_path(path: Path) -> Path:
    """Where a file is written before it takes its place: hidden, in the same folder, the same at every attempt."""
    return path.with_name(f'.{path.name}{DRAFT_SUFFIX}')


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """Within, write to the path that is given; at the end that file, or folder, takes the place of ``path``.

    When anything raises, the draft is removed and what stood at ``path`` still stands there. A process that is killed
    leaves the draft at most, see ``sweep_drafts``.
    """
    draft = draft_path(path)
    try:
        yield draft
        _force_to_disk(draft)
        if path.is_dir():  # a folder with a file per process: only an empty one can be renamed over
            shutil.rmtree(path)
        os.replace(draft, path)
        with suppress(OSError):  # not every file system lets a folder be forced
            _force(path.parent, os.O_RDONLY)
    finally:
        _remove(draft)


def sweep_drafts(folder: Path, *, depth: int = 0) -> list[str]:
    """Remove the drafts that killed processes left in a folder and ``depth`` levels below; returns their names."""
    drafts = sorted(path for level in range(depth + 1) for path in folder.glob('*/' * level + f'.*{DRAFT_SUFFIX}'))
    for draft in drafts:
        _remove(draft)
    return [draft.name for draft in drafts]


def is_whole(path: str | Path) -> bool:
    """Whether a checkpoint is there to its last byte: its archive ends where it should, and all check sums agree.

    torch itself compares no check sums: what a power cut filled with zeros would load. A folder, which some strategies
    write, counts as whole; so does an archive that was saved without check sums, when nothing else is wrong with it.
    """
    return os.path.isdir(path) or is_whole_file(path)


def _force_to_disk(path: Path) -> None:
    """Without it, a power cut can leave a renamed file without its content."""
    for part in path.rglob('*') if path.is_dir() else [path]:
        if part.is_file():
            _force(part, os.O_RDWR)


def _force(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
