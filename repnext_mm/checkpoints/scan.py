"""What a pickle asks for, read without unpickling it."""

from __future__ import annotations

import pickletools
import zipfile
from io import BytesIO
from pathlib import Path

from .archive import archived_pickle
from .legacy import PICKLES, is_legacy
from .safe_pickle import is_allowed


def unsafe_globals(path: str | Path) -> list[str]:
    """Full names of the globals in a ``torch.save`` file that loading would refuse; nothing is executed.

    Returns:
        The names, sorted; empty for files that hold no pickle.

    Raises:
        ValueError, zipfile.BadZipFile, ...: the file is damaged.
    """
    path = Path(path)
    if path.suffix == '.safetensors':
        return []
    zipped = zipfile.is_zipfile(path)
    content = BytesIO(archived_pickle(path) if zipped else path.read_bytes())
    rows = PICKLES if not zipped and is_legacy(path) else 1
    found = {name for _ in range(rows) for name in _globals(content)}
    return sorted(ascii(name)[1:-1][:200] for name in found if not is_allowed(name))


def _globals(content: BytesIO) -> set[str]:
    found: set[str] = set()
    strings: list[str] = []  # STACK_GLOBAL takes its module and name from the stack
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(content):
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
