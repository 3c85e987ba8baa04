"""Folders of made data: complete or absent, also when several processes ask at once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4


def make_once(
    root: str | Path,
    *,
    kind: str,
    info: Mapping[str, Any],
    read_info: Callable[[Path], Mapping[str, Any]],
    write: Callable[[Path], None],
) -> bool:
    """Make a folder unless it is there.

    Args:
        root: the folder.
        kind: what it holds, for errors.
        info: what it was made from: equal values give equal data.
        read_info: reads the same from a folder that is there.
        write: fills an empty folder.

    Returns:
        True if this call made it, False if it was there.

    Raises:
        FileExistsError: the folder holds something else, or was made from other values.
    """
    root = Path(root)
    if _present(root, kind, info, read_info):
        return False
    root.parent.mkdir(parents=True, exist_ok=True)
    draft = root.with_name(f'.{root.name}-{uuid4().hex}')
    draft.mkdir()
    try:
        write(draft)
        try:
            os.rename(draft, root)
        except OSError:  # another process was faster: its folder counts, if it holds what was asked for
            if not _present(root, kind, info, read_info):
                raise
            return False
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return True


def must(written: bool, folder: Path) -> None:
    """Raise an ``OSError`` unless a picture was written (OpenCV only returns False)."""
    if not written:
        raise OSError(f'could not write a picture to {folder}: is the disk full?')


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text())


def _present(root: Path, kind: str, info: Mapping[str, Any], read_info: Callable[[Path], Mapping[str, Any]]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    way_out = f'remove {root}, or set another data_root'
    try:
        found = read_info(root)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileExistsError(f'{root} exists but holds no {kind}: {way_out}') from error
    if found != info:
        differing = ', '.join(
            f'{key} is {found.get(key)!r} instead of {value!r}'
            for key, value in info.items()
            if found.get(key) != value
        )
        raise FileExistsError(f'{root} holds other {kind} ({differing}): {way_out}')
    return True
