"""What a weight file is, by its content whatever its name, and its reader: an archive, pickles in a row, safetensors.

torch trusts the sizes that a pickle declares, reads past the end of shorter records, and runs code when it loads a
TorchScript file; here pickle and records are checked against each other, bytes against their check sums, and no code is
looked at.
"""

from __future__ import annotations

import json
import pickle
import re
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

from repnext_mm.checkpoints._reader.budget import STEP, AttributeHolder, Budget, NotReadError, RefusedGlobalError
from repnext_mm.checkpoints._reader.objects import Standin, known_globals, retyped, typed
from repnext_mm.checkpoints._reader.unpickler import Recorder, Unpickler, described

METADATA = 'repnext_mm'  # where a safetensors file, whose metadata is text, holds ours as JSON
_MAX_METADATA = 1 << 22  # characters: parsed, text takes many times its size
_START = 512
_OTHERS = {  # a start, what it is the start of, and the way out
    rb'\x1f\x8b': 'is compressed with gzip: unpack it first',
    rb'\xfd7zXZ\0': 'is compressed with xz: unpack it first',
    rb'BZh': 'is compressed with bzip2: unpack it first',
    rb'\x28\xb5\x2f\xfd': 'is compressed with zstd: unpack it first',
    rb'7z\xbc\xaf\x27\x1c|Rar!': 'is a compressed archive: unpack it first',
    rb'(?s).{257}ustar': 'is a tar archive: unpack it first, or, from a torch before 0.2, save it again with torch',
    rb'\s*(<!doctype|<html|<\?xml)': 'is a web page: the address needs another form, or a login',
    rb'version https://git-lfs': 'is a pointer of Git LFS: fetch the file itself (git lfs pull)',
    rb'\x89HDF': 'is an HDF5 file: convert it with the library that wrote it',
    rb'\x93NUMPY': 'is an array of numpy: save its numbers with torch.save',
    rb'\x89PNG|\xff\xd8\xff|GIF8': 'is an image: give the path of a weight file',
    rb'\s*[{\[]': 'is a text (JSON): give the path of a weight file, of an index one of the files that it lists',
    rb'\x80[\2-\5]': 'is a bare pickle, not written by torch.save: load it where it is from, and save with torch.save',
}
_NEWEST_RECORDS = {'version': 10, '.format_version': 1}  # what torch 2.11 writes at most
_UTF8, _ENCRYPTED = 0x800, 0x1
_LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, 'little')  # the first pickle is this number
_LEGACY_VERSION = 1001
_LEGACY_PICKLES = 5  # the number, a version, the writer's machine, the content, the order of its storages


def format_of(path: str | Path) -> str:
    """'zip', 'legacy' (torch before 1.6) or 'safetensors'.

    Raises:
        NotReadError: it is of another kind, which the words say.
        EOFError: it is of no kind that is known, or empty.
    """
    path = Path(path)
    with path.open('rb') as file:
        start = file.read(_START)
    if start.startswith(b'PK\x03\x04'):
        return 'zip'
    if _starts_legacy(start):
        return 'legacy'
    if start[8:9] == b'{' and int.from_bytes(start[:8], 'little') <= path.stat().st_size - 8:
        return 'safetensors'
    for pattern, words in _OTHERS.items():
        if re.match(pattern, start, re.IGNORECASE):
            raise NotReadError(f'it {words}')
    raise EOFError('it is empty' if not start else 'it starts like no file of torch.save')


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive, such as the authors' ``*_fused.pt``.

    Raises:
        see ``format_of`` and ``Records``.
    """
    if format_of(path) != 'zip':
        return False
    with _records_of(Path(path)) as (records, _):
        return records.is_torchscript


def read_file(path: Path) -> Any:
    """The content of a weight file, tensors on the CPU; of TorchScript and safetensors ``{'state_dict': tensors}``.

    What ``write_checkpoint`` adds to a safetensors file comes back as ``'meta'``.

    Raises:
        RefusedGlobalError: an object in it is neither a tensor nor on the list; nothing was executed.
        NotReadError: it is of a kind that is not read.
        Exception: it is corrupt; arbitrary bytes go through zip, pickle, numpy and torch.
    """
    found = format_of(path)
    if found == 'safetensors':
        from safetensors import safe_open

        with safe_open(path, framework='pt') as file:
            content = {'state_dict': {key: file.get_tensor(key) for key in file.keys()}}  # noqa: SIM118 - not a dict
            ours = (file.metadata() or {}).get(METADATA, '')
        return {**content, 'meta': json.loads(ours)} if 0 < len(ours) <= _MAX_METADATA else content
    return _read_archive(path) if found == 'zip' else _read_legacy(path)


def is_whole_file(path: str | Path) -> bool:
    """Whether a weight file is there to its last byte: every record in its place, all check sums right.

    Archives that were saved without check sums (an option of torch) and files of a torch before 1.6 are whole when
    nothing else is wrong.
    """
    path = Path(path)
    try:
        kind = format_of(path)
        if kind == 'safetensors':
            read_file(path)
            return True
        if kind == 'legacy':
            _check_legacy(path)
            return True
        with _records_of(path) as (records, _):
            records.compare()
    except Exception:  # arbitrary bytes: whatever is raised on the way, the file is not whole
        return False
    return True


def unsafe_globals(path: str | Path) -> list[str]:
    """Full names of the globals in a ``torch.save`` file that loading would refuse; nothing is executed.

    Returns:
        The names, sorted; empty for files that hold no pickle.

    Raises:
        ValueError, zipfile.BadZipFile, ...: the file is corrupt.
    """
    path = Path(path)
    with path.open('rb') as file:
        bare = file.read(1) == b'\x80'
    try:
        found = format_of(path)
    except NotReadError:
        if not bare:
            raise
        found = 'pickle'
    if found == 'safetensors':
        return []
    known = known_globals()
    if found == 'zip':
        with _records_of(path) as (records, budget):
            content = BytesIO(records.read('data.pkl'))
            known = ScriptGlobals(known) if records.is_torchscript else known
    else:
        content, budget = BytesIO(path.read_bytes()), Budget(path.stat().st_size)
    names: set[str] = set()
    for _ in range(_LEGACY_PICKLES if found == 'legacy' else 1):
        recorder = Recorder(content, budget=budget, known=known)
        try:
            recorder.load()
        except Exception:
            if not recorder.refused:
                raise
            return sorted(names | {*recorder.refused})  # what was asked for before the damage would have been run
        names |= {*recorder.refused}
    return sorted(names)


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
        for name, newest in _NEWEST_RECORDS.items():
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
def _records_of(path: Path) -> Iterator[tuple[Records, Budget]]:
    """An archive's records, and what reading them may cost."""
    budget = Budget(path.stat().st_size)
    with path.open('rb') as file:
        yield Records(file, budget), budget


def _read_archive(path: Path) -> Any:
    """The content of a file that ``torch.save`` wrote, tensors on the CPU; of TorchScript, its tensors by their names.

    Raises:
        RefusedGlobalError: an object in it is neither a tensor nor on the list; nothing was executed.
        NotReadError: it is of another kind.
        pickle.UnpicklingError, zipfile.BadZipFile, KeyError, ...: the file is corrupt.
    """
    with _records_of(path) as (records, budget):
        known = known_globals(swapped=records.swapped)
        if not records.is_torchscript:
            content = _ArchiveReader(records, budget, known).load()
            budget.spend_content(content)
            return content
        module = _ArchiveReader(records, budget, ScriptGlobals(known)).load()
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


class _ArchiveReader(Unpickler):
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


def _starts_legacy(start: bytes) -> bool:
    """Whether a file starts as these do."""
    return start.startswith(b'\x80') and _LEGACY_MAGIC in start[:32]


def _read_legacy(path: Path) -> Any:
    """The content of such a file, tensors on the CPU.

    Raises:
        RefusedGlobalError: an object in it is neither a tensor nor on the list; nothing was executed.
        pickle.UnpicklingError, EOFError, ...: it is corrupt.
    """
    file, budget = BytesIO(path.read_bytes()), Budget(path.stat().st_size)
    start, storages = _skimmed(file, budget)
    file.seek(start)
    content = _LegacyReader(file, budget, storages).load()
    budget.spend_content(content)
    return content


def _check_legacy(path: Path) -> None:
    """Go through such a file to its end.

    Raises:
        pickle.UnpicklingError, EOFError, ...: it is corrupt.
    """
    _skimmed(BytesIO(path.read_bytes()), Budget(path.stat().st_size))


def _skimmed(file: BytesIO, budget: Budget) -> tuple[int, dict[str, TypedStorage]]:
    """Where the content's pickle starts, and the storages, which come after it."""
    _, version, _machine = (Unpickler(file, budget=budget, known={}).load() for _ in range(3))
    if version != _LEGACY_VERSION:
        raise NotReadError(
            f'its version is {ascii(version)[:20]}, and {_LEGACY_VERSION} the newest known: update repnext_mm'
        )
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


class _LegacyReader(Unpickler):
    def __init__(self, file: BytesIO, budget: Budget, storages: Mapping[str, TypedStorage]) -> None:
        super().__init__(file, budget=budget, known=known_globals())
        self._storages = storages

    def persistent_load(self, reference: Any) -> TypedStorage:
        dtype, key, _ = described(self.budget, reference)
        storage = self._storages[key]
        return storage if storage.dtype is dtype else retyped(storage, dtype)
