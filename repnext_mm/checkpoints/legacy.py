"""Reading what torch.save wrote before torch 1.6: pickles in a row, then the bytes of each storage."""

from __future__ import annotations

import pickle
import struct
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

from .safe_pickle import Unpickler
from .tensors import Storage, described, known_globals, untyped

_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, 'little')  # the first pickle is this number
PICKLES = 5  # the number, a version, the writer's machine, the content, the order of its storages


def is_legacy(path: Path) -> bool:
    """Whether a file starts as these do."""
    with path.open('rb') as file:
        return _MAGIC in file.read(32)


def read_legacy(path: Path) -> Any:
    """The content of such a file, tensors on the CPU.

    Raises:
        RefusedGlobalError: an object in it is neither a tensor nor on the list; nothing was executed.
        pickle.UnpicklingError, EOFError, ...: the file is no such file, or it is damaged.
    """
    if not is_legacy(path):
        raise pickle.UnpicklingError('it starts as no file of torch.save does')
    file, size = BytesIO(path.read_bytes()), path.stat().st_size
    _, version, machine = (_Reader(file, size).load() for _ in range(3))
    if version != 1001 or machine['little_endian'] != (sys.byteorder == 'little'):
        raise pickle.UnpicklingError('it is of an unknown version, or was written on a machine of another byte order')
    reader = _Reader(file, size)
    content = reader.load()
    reader.fill(_Reader(file, size).load())
    return content


class _Reader(Unpickler):
    """Makes room for storages as they are referred to: together no more than the file has."""

    def __init__(self, file: BytesIO, size: int) -> None:
        super().__init__(file, size=size, known=known_globals())
        self._file = file
        self._left = size
        self._buffers: dict[str, tuple[int, bytearray]] = {}  # size of an element, bytes
        self._storages: dict[str, Any] = {}

    def persistent_load(self, pid: Any) -> Storage:
        dtype, key, size = described(pid)
        if key not in self._storages:
            self._left -= size
            if self._left < 0:
                raise pickle.UnpicklingError('its storages claim more bytes than the file has')
            self._buffers[key] = dtype.itemsize, bytearray(size)
            self._storages[key] = untyped(self._buffers[key][1])
        if size > self._storages[key].nbytes() or pid[5] is not None:
            raise pickle.UnpicklingError(f'storage {key!a} is a part of another')
        return Storage(self._storages[key], dtype)

    def fill(self, order: list[str]) -> None:
        """Read the bytes of every storage, in the order that the file names."""
        if sorted(order) != sorted(self._buffers):
            raise pickle.UnpicklingError('it does not hold the storages that it refers to')
        for key in order:
            element, buffer = self._buffers[key]
            (count,) = struct.unpack('<q', self._file.read(8))
            if count * element != len(buffer) or self._file.readinto(buffer) != len(buffer):
                raise EOFError(f'storage {key!a} is cut short')
