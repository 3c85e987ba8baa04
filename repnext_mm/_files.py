"""Files and folders that are whole or absent: written beside their place, forced to the disk, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from repnext_mm.errors import FileInTheWayError, NotWrittenError, UserError

DRAFT_SUFFIX = '.repnext-draft'


@contextmanager
def drafted(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Within, write to the path that is given; at the end that file, or folder, takes the place of ``path``.

    When anything raises, the draft is removed and what stood at ``path`` still stands there. A process that is killed
    leaves the draft at most, see ``sweep_drafts``.

    Raises:
        NotWrittenError: in place of any ``OSError``.

    Args:
        path: the file or folder to write; its parent exists.
        shared: the draft has the same name in every process, see ``draft_path``, for a folder with a file from each.
    """
    draft = draft_path(path) if shared else path.with_name(f'.{path.name}-{uuid4().hex}{DRAFT_SUFFIX}')
    try:
        with writing(path):
            yield draft
            _force_to_disk(draft)
            if path.is_dir():  # a folder with a file per process: only an empty one can be renamed over
                shutil.rmtree(path)
            os.replace(draft, path)
        with suppress(OSError):  # not every file system lets a folder be forced
            _force(path.parent, os.O_RDONLY)
    finally:
        _remove(draft)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one sentence that a file or folder cannot be written.

    Raises:
        NotWrittenError: in place of any ``OSError`` that is not a ``UserError`` yet.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise NotWrittenError(
            f"'{path}' was not written ({error.strerror or error}): make room on the disk, give write access, or "
            'choose another place'
        ) from error


def draft_path(path: Path) -> Path:
    """Where a shared draft is written: hidden, in the same folder, the same at every attempt."""
    return path.with_name(f'.{path.name}{DRAFT_SUFFIX}')


def sweep_drafts(folder: Path, *, depth: int = 0) -> list[str]:
    """Remove the drafts that killed processes left in a folder and ``depth`` levels below; returns their names."""
    drafts = sorted(path for level in range(depth + 1) for path in folder.glob('*/' * level + f'.*{DRAFT_SUFFIX}'))
    for draft in drafts:
        _remove(draft)
    return [draft.name for draft in drafts]


def make_once(
    root: str | Path,
    *,
    kind: str,
    info: Mapping[str, Any],
    read_info: Callable[[Path], Mapping[str, Any]],
    write: Callable[[Path], None],
) -> bool:
    """Make a folder of data unless it is there; complete or absent, also when several processes ask at once.

    Args:
        root: the folder.
        kind: what it holds, for errors.
        info: what it was made from: equal values give equal data.
        read_info: reads the same from a folder that is there.
        write: fills an empty folder.

    Returns:
        True if this call made it, False if it was there.

    Raises:
        FileInTheWayError: the folder holds something else, or was made from other values.
        NotWrittenError: in place of any ``OSError``.
    """
    root = Path(root)
    if _present(root, kind, info, read_info):
        return False
    draft = root.with_name(f'.{root.name}-{uuid4().hex}{DRAFT_SUFFIX}')
    try:
        with writing(root):
            draft.mkdir(parents=True)
            write(draft)
            try:
                os.rename(draft, root)
            except OSError:  # another process was faster: its folder counts, if it holds what was asked for
                if not _present(root, kind, info, read_info):
                    raise
                return False
    finally:
        _remove(draft)
    return True


def _present(root: Path, kind: str, info: Mapping[str, Any], read_info: Callable[[Path], Mapping[str, Any]]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    way_out = f'remove {root}, or set another data_root'
    try:
        found = read_info(root)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileInTheWayError(f'{root} exists but does not hold {kind}: {way_out}') from error
    if found != info:
        differing = ', '.join(
            f'{key} is {found.get(key)!r} instead of {value!r}'
            for key, value in info.items()
            if found.get(key) != value
        )
        raise FileInTheWayError(f'{root} holds other {kind} ({differing}): {way_out}')
    return True


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
