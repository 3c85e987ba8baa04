"""Puts the operators where mmcv looks for its compiled ones: a file `mmcv/_ext.py` of two lines.

Importing mmcv is not needed, so that a broken one can be helped. A compiled `_ext` always comes first in Python's
search, so the file can never hide one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from typing import NamedTuple

MARK = '# Made by `python -m repnext_mm.mmcv_ops'
TEXT = f"""\
{MARK} install`, and taken away by `... remove`: mmcv's operators, not compiled.
from repnext_mm.mmcv_ops.operators import __getattr__  # noqa: F401
"""
SET_ASIDE = '.set-aside'


class Operators(NamedTuple):
    """Which operators the mmcv of this environment has."""

    kind: str  # 'compiled', 'torchvision' (ours), 'foreign' (somebody else's _ext.py) or 'none'
    file: Path  # theirs, or where they would be


def status() -> Operators:
    """Look at the files of the mmcv that `import mmcv` would find, without importing it.

    Raises:
        ModuleNotFoundError: there is none.
    """
    folder = _mmcv_folder()
    for suffix in EXTENSION_SUFFIXES:
        if (compiled := folder / f'_ext{suffix}').is_file():
            return Operators('compiled', compiled)
    file = folder / '_ext.py'
    if not file.is_file():
        return Operators('none', file)
    return Operators('torchvision' if _is_ours(file) else 'foreign', file)


def install(*, set_aside: bool = False) -> Operators:
    """Write `mmcv/_ext.py`, and say which operators are there now; twice is as good as once.

    With ``set_aside``, compiled operators that do not load are renamed first; :func:`remove` takes that back.

    Raises:
        FileExistsError: mmcv has compiled operators, or an `_ext.py` that is not ours.
        ModuleNotFoundError: there is no mmcv.
    """
    found = status()
    if found.kind == 'compiled' and set_aside:
        found.file.rename(f'{found.file}{SET_ASIDE}')
        found = status()
    if found.kind == 'compiled':
        raise FileExistsError(
            f'{found.file} has compiled operators, which need no help; if they do not load in this '
            'environment, put them aside with install --set-aside'
        )
    if found.kind == 'foreign':
        raise FileExistsError(f'{found.file} is not from repnext_mm: remove it yourself if you want it replaced')
    if found.kind == 'none':
        found.file.write_text(TEXT, encoding='utf-8')
    return status()


def remove() -> Operators:
    """Take the file away again, only if it is ours, and bring back what was set aside; say what is there now.

    Raises:
        ModuleNotFoundError: there is no mmcv.
    """
    found = status()
    file = found.file.parent / '_ext.py'
    if file.is_file() and _is_ours(file):
        file.unlink()
        Path(cache_from_source(str(file))).unlink(missing_ok=True)
    for compiled in _set_aside(found.file.parent):
        compiled.rename(str(compiled).removesuffix(SET_ASIDE))
    return status()


def compile_command() -> str:
    """The shell command that compiles the operators of the mmcv that is installed."""
    for name in ('onedl-mmcv', 'mmcv'):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        break
    else:
        name, version = 'mmcv', '2.1.0'
    return (
        f'MMCV_WITH_OPS=1 {sys.executable} -m pip install --force-reinstall --no-deps --no-build-isolation '
        f'--no-cache-dir --no-binary {name} {name}=={version}'
    )


def _mmcv_folder() -> Path:
    spec = find_spec('mmcv')
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f'{sys.executable} has no mmcv: install one first, such as onedl-mmcv or mmcv-lite', name='mmcv'
        )
    return Path(spec.origin).parent


def _is_ours(file: Path) -> bool:
    return file.read_text(encoding='utf-8', errors='replace').startswith(MARK)


def _set_aside(folder: Path) -> Iterator[Path]:
    for suffix in EXTENSION_SUFFIXES:
        if (file := folder / f'_ext{suffix}{SET_ASIDE}').is_file():
            yield file
