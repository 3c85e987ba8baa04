"""What a file is, by its content whatever its name, and its reader."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from repnext_mm.checkpoints._reader.archive import read_archive, records_of
from repnext_mm.checkpoints._reader.errors import NotReadError
from repnext_mm.checkpoints._reader.legacy import check_legacy, read_legacy, starts_legacy

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
    if starts_legacy(start):
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
    with records_of(Path(path)) as (records, _):
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
    return read_archive(path) if found == 'zip' else read_legacy(path)


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
            check_legacy(path)
            return True
        with records_of(path) as (records, _):
            records.compare()
    except Exception:  # arbitrary bytes: whatever is raised on the way, the file is not whole
        return False
    return True
