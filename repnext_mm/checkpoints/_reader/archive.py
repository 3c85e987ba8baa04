"""Reading the zip archives of torch.save and TorchScript: a pickle, and beside it the bytes of each tensor.

torch trusts the sizes that the pickle declares, reads past the end of shorter records, and runs code when it loads a
TorchScript file; here the two are checked against each other, bytes against their check sums, and no code is looked at.
"""

from __future__ import annotations

import pickle
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from struct import unpack
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.storage import TypedStorage

from repnext_mm.checkpoints._reader.budget import STEP, AttributeHolder, Budget
from repnext_mm.checkpoints._reader.errors import NotReadError
from repnext_mm.checkpoints._reader.objects import Standin
from repnext_mm.checkpoints._reader.tensors import known_globals, retyped, typed
from repnext_mm.checkpoints._reader.unpickler import Unpickler, described

_NEWEST = {'version': 10, '.format_version': 1}  # what torch 2.11 writes at most
_UTF8, _ENCRYPTED = 0x800, 0x1


class Records:
    """The entries of an archive below its one folder.

    Raises:
        NotReadError: it is another kind of archive, or of a format that is newer than this reader.
        zipfile.BadZipFile, pickle.UnpicklingError: it is corrupt.
    """

    def __init__(self, file: BinaryIO, budget: Budget) -> None:
        self._file = file
        self._budget = budget
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        budget.spend(STEP * len(entries))
        self.entries = {entry.filename: entry for entry in entries}
        if len(self.entries) != len(entries):
            raise pickle.UnpicklingError('two of its records have one name')
        # an option of torch; of one record alone it is damage
        self._summed = any(entry.CRC for entry in entries)
        self._folder = _folder(list(self.entries))
        for name, newest in _NEWEST.items():
            found = int(self.read(name)[:20]) if name in self else newest
            if found > newest:
                raise NotReadError(f"its '{name}' is {found}, and {newest} is the newest known: update repnext_mm")
        order = bytes(self.read('byteorder')) if 'byteorder' in self else b'little'
        if order not in (b'little', b'big'):
            raise pickle.UnpicklingError('it does not say in which order its bytes are')
        self.swapped = order != sys.byteorder.encode()

    def __contains__(self, name: str) -> bool:
        return f'{self._folder}/{name}' in self.entries

    @property
    def is_torchscript(self) -> bool:
        code = f'{self._folder}/code/'
        return 'constants.pkl' in self or any(name.startswith(code) for name in self.entries)

    def read(self, name: str) -> bytearray:
        """The content of a record."""
        if name not in self:
            raise pickle.UnpicklingError(f'it lacks its record {name[:100]!a}')
        return self._content(self.entries[f'{self._folder}/{name}'])

    def compare(self) -> None:
        """Read every record, which compares it with its check sum."""
        for entry in self.entries.values():
            self._content(entry)

    def _content(self, entry: zipfile.ZipInfo) -> bytearray:
        name = entry.filename[:100]
        self._budget.spend(STEP + entry.file_size)
        self._file.seek(entry.header_offset)
        header = self._file.read(30)
        if len(header) != 30 or not header.startswith(b'PK\x03\x04'):
            raise EOFError(f'{name!a} is missing')
        length, extra = unpack('<HH', header[26:])
        encoding = 'utf-8' if entry.flag_bits & _UTF8 else 'cp437'
        if self._file.read(length).decode(encoding) != entry.orig_filename or entry.flag_bits & _ENCRYPTED:
            raise pickle.UnpicklingError(f'{name!a} has two names, or is encrypted')
        self._file.seek(extra, 1)
        content = bytearray(entry.file_size)
        if entry.compress_type == zipfile.ZIP_STORED:
            count = self._file.readinto(content)  # type: ignore[attr-defined]
        elif entry.compress_type == zipfile.ZIP_DEFLATED:
            count = self._inflate(content, entry.compress_size)
        else:
            raise NotReadError('its records are compressed in a way that torch does not read: save it with torch')
        if count != entry.file_size:
            raise EOFError(f'{name!a} is cut short')
        if self._summed and zlib.crc32(content) != entry.CRC:
            if not entry.CRC and not any(content):
                raise NotReadError('its numbers were not saved (torch.serialization.skip_data): save it with them')
            raise pickle.UnpicklingError(f'the check sum (CRC) of {name!a} differs')
        return content

    def _inflate(self, content: bytearray, size: int) -> int:
        unpacker, count = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while size > 0 and not unpacker.eof:
            block = self._file.read(min(size, 1 << 16))
            size = size - len(block) if block else 0
            while block and count <= len(content):
                unpacked = unpacker.decompress(block, 1 << 20)
                content[count : count + len(unpacked)] = unpacked
                count += len(unpacked)
                block = unpacker.unconsumed_tail
        return count


@contextmanager
def records_of(path: Path) -> Iterator[tuple[Records, Budget]]:
    """An archive's records, and what reading them may cost."""
    budget = Budget(path.stat().st_size)
    with path.open('rb') as file:
        yield Records(file, budget), budget


def read_archive(path: Path) -> Any:
    """The content of a file that ``torch.save`` wrote, tensors on the CPU; of TorchScript, its tensors by their names.

    Raises:
        RefusedGlobalError: an object in it is neither a tensor nor on the list; nothing was executed.
        NotReadError: it is of another kind.
        pickle.UnpicklingError, zipfile.BadZipFile, KeyError, ...: the file is corrupt.
    """
    with records_of(path) as (records, budget):
        known = known_globals(swapped=records.swapped)
        if not records.is_torchscript:
            content = _Reader(records, budget, known).load()
            budget.spend_content(content)
            return content
        module = _Reader(records, budget, ScriptGlobals(known)).load()
        budget.spend_content(module)
        tensors = dict(_named_tensors(budget, module))
        if not tensors and any('/constants/' in name for name in records.entries):
            raise NotReadError('its weights are constants of its code (torch.jit.freeze): ask for the file before that')
        return {'state_dict': tensors}


class ScriptGlobals(dict[str, Any]):
    """Globals of TorchScript: beside the known ones, classes of its own, which only hold attributes."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        super().__init__(known)
        lists = ('build_intlist', 'build_doublelist', 'build_boollist', 'build_tensorlist', 'restore_type_tag')
        self.update({f'torch.jit._pickle.{name}': Standin(_as_it_is) for name in lists})

    def __missing__(self, name: str) -> Any:
        if name.startswith('__torch__.'):
            return AttributeHolder
        raise KeyError(name)


class _Reader(Unpickler):
    def __init__(self, records: Records, budget: Budget, known: Mapping[str, Any]) -> None:
        super().__init__(BytesIO(records.read('data.pkl')), budget=budget, known=known)
        self._records = records
        self._storages: dict[str, TypedStorage] = {}

    def persistent_load(self, reference: Any) -> TypedStorage:
        dtype, key, size = described(self.budget, reference)
        if key not in self._storages:
            self._storages[key] = self._read(key, dtype)
        storage = self._storages[key]
        held = storage._untyped_storage.nbytes()
        if size > held:
            raise pickle.UnpicklingError(f'storage {key!a} holds {held} bytes, not {size}')
        if storage.dtype is dtype:
            return storage
        if self._records.swapped:
            raise pickle.UnpicklingError(f'storage {key!a} holds two kinds of numbers')
        return retyped(storage, dtype)

    def _read(self, key: str, dtype: torch.dtype) -> TypedStorage:
        storage = typed(self._records.read(f'data/{key}'), dtype)
        if self._records.swapped and dtype.itemsize > 1:
            storage._untyped_storage.byteswap(dtype)
        return storage


def _folder(names: list[str]) -> str:
    """The folder of an archive that torch reads."""
    folders = [name.partition('/')[0] for name in names if name.count('/') == 1 and name.endswith('/data.pkl')]
    if len(folders) == 1:
        return folders[0]
    shown = ', '.join(ascii(name[:60]) for name in names[:3])
    if all(name.endswith('.npy') for name in names):
        raise NotReadError("it is an archive of numpy's: load it with numpy and save its arrays with torch.save")
    if any(name.endswith(('/extern_modules', '/archive_format')) for name in names):
        raise NotReadError("it is a program of torch.export or torch.package: save the model's state_dict() instead")
    if any(name.endswith(('.pth', '.pt', '.bin', '.safetensors')) for name in names):
        raise NotReadError(f'it is an archive around {shown}: unpack it first')
    raise NotReadError(f'it is an archive ({shown}), but not one that torch.save wrote: give the path of a weight file')


def _as_it_is(_: Budget, value: Any, *_types: Any) -> Any:
    return value


def _named_tensors(budget: Budget, module: Any) -> Iterator[tuple[str, Tensor]]:
    waiting = [('', module)]
    while waiting:
        prefix, holder = waiting.pop()
        if not isinstance(holder, AttributeHolder):
            raise pickle.UnpicklingError('it does not hold a module')
        for name, value in vars(holder).items():
            if isinstance(value, Tensor | AttributeHolder):
                budget.spend(STEP + len(prefix) + len(name))
            if isinstance(value, Tensor):
                yield f'{prefix}{name}', value
            elif isinstance(value, AttributeHolder):
                waiting.append((f'{prefix}{name}.', value))
