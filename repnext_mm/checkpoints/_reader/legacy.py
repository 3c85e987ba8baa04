"""Reading what torch.save wrote before torch 1.6: pickles in a row, then the bytes of each storage."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from struct import unpack
from typing import Any

from torch.storage import TypedStorage

from repnext_mm.checkpoints._reader.budget import Budget
from repnext_mm.checkpoints._reader.errors import NotReadError, RefusedGlobalError
from repnext_mm.checkpoints._reader.tensors import known_globals, retyped, typed
from repnext_mm.checkpoints._reader.unpickler import Recorder, Unpickler, described

_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, 'little')  # the first pickle is this number
_VERSION = 1001
PICKLES = 5  # the number, a version, the writer's machine, the content, the order of its storages


def starts_legacy(start: bytes) -> bool:
    """Whether a file starts as these do."""
    return start.startswith(b'\x80') and _MAGIC in start[:32]


def read_legacy(path: Path) -> Any:
    """The content of such a file, tensors on the CPU.

    Raises:
        RefusedGlobalError: an object in it is neither a tensor nor on the list; nothing was executed.
        pickle.UnpicklingError, EOFError, ...: it is corrupt.
    """
    file, budget = BytesIO(path.read_bytes()), Budget(path.stat().st_size)
    start, storages = _skimmed(file, budget)
    file.seek(start)
    content = _Reader(file, budget, storages).load()
    budget.spend_content(content)
    return content


def check_legacy(path: Path) -> None:
    """Go through such a file to its end.

    Raises:
        pickle.UnpicklingError, EOFError, ...: it is corrupt.
    """
    _skimmed(BytesIO(path.read_bytes()), Budget(path.stat().st_size))


def _skimmed(file: BytesIO, budget: Budget) -> tuple[int, dict[str, TypedStorage]]:
    """Where the content's pickle starts, and the storages, which come after it."""
    _, version, _machine = (Unpickler(file, budget=budget, known={}).load() for _ in range(3))
    if version != _VERSION:
        raise NotReadError(f'its version is {ascii(version)[:20]}, and {_VERSION} the newest known: update repnext_mm')
    start = file.tell()
    recorder = Recorder(file, budget=budget, known=known_globals())
    recorder.load()
    if recorder.refused:
        raise RefusedGlobalError(recorder.refused[0])
    order = Unpickler(file, budget=budget, known={}).load()
    named = type(order) is list and all(type(key) is str for key in order)
    if not named or sorted(order) != sorted(recorder.storages):
        raise pickle.UnpicklingError('it does not hold the storages that it refers to')
    storages: dict[str, TypedStorage] = {}
    for key in order:
        dtype, _, size = recorder.storages[key]
        budget.spend(size)
        (count,) = unpack('<q', file.read(8))
        content = bytearray(file.read(size)) if count * dtype.itemsize == size else b''
        if len(content) != size:
            raise EOFError(f'storage {key!a} is cut short')
        storages[key] = typed(bytearray(content), dtype)
    return start, storages


class _Reader(Unpickler):
    def __init__(self, file: BytesIO, budget: Budget, storages: Mapping[str, TypedStorage]) -> None:
        super().__init__(file, budget=budget, known=known_globals())
        self._storages = storages

    def persistent_load(self, reference: Any) -> TypedStorage:
        dtype, key, _ = described(self.budget, reference)
        storage = self._storages[key]
        return storage if storage.dtype is dtype else retyped(storage, dtype)
