"""Files as training lists them: by mmengine's own listing, which follows links and reads hidden folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import NamedTuple

from repnext_mm.data.own.findings import listed
from repnext_mm.errors import UserError

_OF_SYSTEMS = {'__MACOSX', '@eaDir', '$RECYCLE.BIN', 'System Volume Information', 'lost+found', '__pycache__'}


class Listing(NamedTuple):
    """Paths relative to a folder, sorted."""

    files: list[str]  # what training finds, whatever its suffix
    hidden: list[str]  # folders that people do not see: training reads what lies in them
    broken: list[str]  # links that lead nowhere: training leaves them out


def list_files(folder: Path) -> Listing:
    """Everything below a folder.

    Raises:
        UserError: a link leads back to a folder above it.
    """
    from mmengine.fileio import list_dir_or_file

    hidden, broken = [], []
    for place, folders, files in os.walk(folder, followlinks=True):
        for name in folders:
            path = os.path.join(place, name)
            if is_hidden(name):
                hidden.append(os.path.relpath(path, folder))
            if os.path.islink(path) and Path(os.path.realpath(place)).is_relative_to(os.path.realpath(path)):
                raise UserError(f"'{path}' is a link to a folder above it, where listing never ends: remove the link")
        broken += [os.path.relpath(os.path.join(place, name), folder) for name in files if _is_broken(place, name)]
    found = list_dir_or_file(str(folder), list_dir=False, list_file=True, recursive=True)
    return Listing(sorted(found), sorted(hidden), sorted(broken))


def read_lines(path: Path) -> list[str]:
    """The lines of a list of names, without the empty ones.

    Raises:
        UserError: it cannot be read.
    """
    try:
        text = path.read_text(encoding='utf-8-sig', errors='replace')
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}): give read access to it") from error
    return [line.strip() for line in text.replace('\0', '?').splitlines() if line.strip()]


def is_hidden(name: str) -> bool:
    """Whether a folder is a program's or a system's own: Jupyter's, git's, macOS's, a NAS's."""
    return name.startswith('.') or name in _OF_SYSTEMS


def suffix_counts(files: Iterable[str | PurePath]) -> str:
    """The most frequent suffixes: '30 .webp, 2 .txt'."""
    counts = Counter(PurePath(file).suffix.lower() or 'without a suffix' for file in files)
    return listed([f'{count} {suffix}' for suffix, count in counts.most_common()]) or 'no file'


def _is_broken(place: str, name: str) -> bool:
    path = os.path.join(place, name)
    return os.path.islink(path) and not os.path.exists(path)
