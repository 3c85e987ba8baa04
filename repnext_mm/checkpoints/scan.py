"""What a pickle asks for, read without unpickling it."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

from .safe_pickle import is_allowed


def unsafe_globals(path: str | Path) -> list[str]:
    """Full names of the globals in a ``torch.save`` file that loading would refuse; nothing is executed.

    Returns:
        The names, sorted; empty for files that hold no pickle.

    Raises:
        ValueError: the pickle is damaged.
    """
    return sorted({name for data in _pickles(Path(path)) for name in _globals(data) if not is_allowed(name)})


def _pickles(path: Path) -> list[bytes]:
    if path.suffix == '.safetensors':
        return []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return [archive.read(name) for name in archive.namelist() if name.endswith('data.pkl')]
    return [path.read_bytes()]


def _globals(data: bytes) -> set[str]:
    found: set[str] = set()
    strings: list[str] = []  # STACK_GLOBAL takes its module and name from the stack
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ('GLOBAL', 'INST'):
            found.add(str(argument).replace(' ', '.'))
        elif opcode.name == 'STACK_GLOBAL' and len(strings) >= 2:
            found.add('.'.join(strings[-2:]))
        elif opcode.name == 'MEMOIZE' and strings:
            memo[len(memo)] = strings[-1]
        elif opcode.name in ('BINGET', 'LONG_BINGET') and argument in memo:
            strings.append(memo[argument])
        elif isinstance(argument, str):
            strings.append(argument)
    return found
