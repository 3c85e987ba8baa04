"""Reading the zip archives of torch.save and TorchScript: a pickle, and beside it the bytes of each tensor.

torch trusts the sizes that the pickle declares, reads past the end of shorter records, and runs code when it loads a
TorchScript file; here the two are checked against each other, bytes against their checksums, and no code is looked at.
"""

from __future__ import annotations

import pickle
import sys
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from .safe_pickle import AttributeHolder, Unpickler
from .tensors import Storage, described, known_globals, untyped

_MAX_MODULES, _MAX_NAME = 100_000, 1000  # of a TorchScript file: shared modules could be passed without end


def read_archive(path: Path) -> Any:
    """The content of a file that ``torch.save`` wrote, tensors on the CPU.

    Raises:
        RefusedGlobalError: an object in it is neither a tensor nor on the list; nothing was executed.
        pickle.UnpicklingError, zipfile.BadZipFile, KeyError, ...: the file is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        return _Reader(_Records(archive, path.stat().st_size)).load()


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of a TorchScript archive, without its code.

    Raises:
        see ``read_archive``.
    """
    with zipfile.ZipFile(path) as archive:
        module = _ScriptReader(_Records(archive, path.stat().st_size)).load()
    return dict(_named_tensors(module))


def archived_pickle(path: Path) -> bytes:
    """The pickle of a zip archive.

    Raises:
        see ``read_archive``.
    """
    with zipfile.ZipFile(path) as archive:
        return bytes(_Records(archive, path.stat().st_size).read('data.pkl'))


class _Records:
    """The entries of an archive below its one folder, which together are no larger than the file."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive = archive
        self._left = size
        self._folder = archive.namelist()[0].partition('/')[0]
        if 'byteorder' in self and self.read('byteorder') != sys.byteorder.encode():
            raise pickle.UnpicklingError('it was written on a machine of another byte order')

    def __contains__(self, name: str) -> bool:
        return f'{self._folder}/{name}' in self._archive.NameToInfo

    def read(self, name: str) -> bytearray:
        info = self._archive.getinfo(f'{self._folder}/{name}')
        self._left -= info.file_size
        if info.compress_type != zipfile.ZIP_STORED or self._left < 0:
            raise pickle.UnpicklingError(f'{name!a} is compressed, or claims more bytes than the file has')
        content = bytearray(info.file_size)
        with self._archive.open(info) as record:
            if cast(BytesIO, record).readinto(content) != info.file_size:
                raise EOFError(f'{name!a} is cut short')
        return content


class _Reader(Unpickler):
    def __init__(self, records: _Records) -> None:
        content = records.read('data.pkl')
        super().__init__(BytesIO(content), size=len(content), known=known_globals())
        self._records = records
        self._storages: dict[str, Any] = {}

    def persistent_load(self, pid: Any) -> Storage:
        dtype, key, size = described(pid)
        if key not in self._storages:
            self._storages[key] = untyped(self._records.read(f'data/{key}'))
        held = self._storages[key].nbytes()
        if size > held:
            raise pickle.UnpicklingError(f'storage {key!a} holds {held} bytes, not {size}')
        return Storage(self._storages[key], dtype)


class _ScriptReader(_Reader):
    def __init__(self, records: _Records) -> None:
        super().__init__(records)
        lists = ('build_intlist', 'build_doublelist', 'build_boollist', 'build_tensorlist')
        jit: dict[str, Any] = {f'torch.jit._pickle.{name}': _as_it_is for name in lists}
        self.known = {**self.known, **jit, 'torch.jit._pickle.restore_type_tag': _as_it_is}
        self._called |= {id(_as_it_is)}

    def find_class(self, module: str, name: str) -> Any:
        if module.partition('.')[0] == '__torch__':
            return AttributeHolder
        return super().find_class(module, name)


def _as_it_is(value: Any, *_: Any) -> Any:
    return value


def _named_tensors(module: Any) -> Iterator[tuple[str, Tensor]]:
    waiting, count = [('', module)], 0
    while waiting:
        prefix, holder = waiting.pop()
        count += 1
        if not isinstance(holder, AttributeHolder) or count > _MAX_MODULES or len(prefix) > _MAX_NAME:
            raise pickle.UnpicklingError('it holds no module, or one without end')
        for name, value in vars(holder).items():
            if isinstance(value, Tensor):
                yield f'{prefix}{name}', value
            elif isinstance(value, AttributeHolder):
                waiting.append((f'{prefix}{name}.', value))
