"""Pickles and archives put together by hand: what no honest writer writes."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path


def plain(thing: object) -> bytes:
    """Plain Python values: text, bytes, numbers, None, and tuples, lists and dicts of them."""
    return (
        pickle.dumps(thing, 3)[2:-1].replace(b'q\x00', b'')
        if not isinstance(thing, tuple | list | dict)
        else (
            b'(' + b''.join(map(plain, thing)) + b't'
            if isinstance(thing, tuple)
            else b'](' + b''.join(map(plain, thing)) + b'e'
            if isinstance(thing, list)
            else b'}(' + b''.join(plain(key) + plain(item) for key, item in thing.items()) + b'u'
        )
    )


def text(content: str) -> bytes:
    data = content.encode()
    return b'X' + struct.pack('<I', len(data)) + data


def raw(content: bytes) -> bytes:
    return b'B' + struct.pack('<I', len(content)) + content


def found(name: str) -> bytes:
    """A global by its full name."""
    module, _, last = name.rpartition('.')
    return f'c{module}\n{last}\n'.encode()


def tuple_of(*parts: bytes) -> bytes:
    return b'(' + b''.join(parts) + b't'


def list_of(*parts: bytes) -> bytes:
    return b'](' + b''.join(parts) + b'e'


def dict_of(*pairs: tuple[bytes, bytes]) -> bytes:
    return b'}(' + b''.join(key + item for key, item in pairs) + b'u'


def call(name: str, *arguments: bytes) -> bytes:
    return found(name) + tuple_of(*arguments) + b'R'


def put(place: int) -> bytes:
    """Keep what is on top of the stack, and drop it there."""
    return b'r' + struct.pack('<I', place) + b'0'


def get(place: int) -> bytes:
    return b'j' + struct.pack('<I', place)


def storage(count: int, *, kind: str = 'torch.FloatStorage', key: str = '0') -> bytes:
    return tuple_of(text('storage'), found(kind), text(key), text('cpu'), plain(count)) + b'Q'


def tensor(count: int, size: tuple[int, ...], stride: tuple[int, ...], *, kind: str = 'torch.FloatStorage') -> bytes:
    """A tensor at the start of storage 0, which is said to hold ``count`` numbers."""
    return call('torch._utils._rebuild_tensor_v2', *tensor_arguments(count, size, stride, kind=kind))


def tensor_arguments(
    count: int, size: tuple[int, ...], stride: tuple[int, ...], *, kind: str = 'torch.FloatStorage'
) -> tuple[bytes, ...]:
    hooks = found('collections.OrderedDict') + b')R'
    return storage(count, kind=kind), plain(0), plain(size), plain(stride), b'\x89', hooks


def dtype(code: str) -> bytes:
    """A type of numpy's numbers."""
    return call('numpy.dtype', text(code), b'\x89', b'\x88')


def program(content: bytes) -> bytes:
    """A pickle whose value the instructions leave on the stack."""
    return b'\x80\x02' + content + b'.'


def archived(path: Path, content: bytes, records: Mapping[str, bytes] = {}, *, script: bool = False) -> Path:
    """A file as torch.save, or TorchScript, writes it around a pickle."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', content)
        for name, data in records.items():
            archive.writestr(f'archive/data/{name}', data)
        if script:
            archive.writestr('archive/constants.pkl', b'\x80\x02).')
    return path
