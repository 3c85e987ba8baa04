"""Writing weight files: plain tensors, whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repnext_mm._files import drafted
from repnext_mm.checkpoints._reader.files import METADATA
from repnext_mm.checkpoints.read import StateDict
from repnext_mm.errors import MissingFileError, UserError, WeightsError

HASH_DIGITS = 8
_USUAL = {
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
}
_MAX_PARTS, _MAX_DEPTH = 100_000, 50  # of metadata


def write_checkpoint(path: str | Path, state: StateDict, *, meta: Mapping[str, Any] | None = None) -> Path:
    """Write tensors and plain metadata so that ``weights_only=True`` reads them; atomic.

    An interrupted call leaves the old file, or none, see ``repnext_mm._files.drafted``.

    Args:
        path: where to; ``.safetensors`` writes that format, which holds ``meta`` as JSON, and its strings as they are.
        state: the weights; tensors that share memory are written apart.
        meta: strings, numbers, and lists and dicts of them.

    Returns:
        The path.

    Raises:
        MissingFileError: the folder does not exist.
        NotWrittenError: the disk is full, or the folder takes no file.
        WeightsError: a tensor is of a type that the format does not hold.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise MissingFileError(f'no folder {path.parent} to write {path.name} to: make it first')
    _check_types(state, path.suffix)
    tensors = {key: _plain(value) for key, value in state.items()}
    with drafted(path) as draft:
        if path.suffix == '.safetensors':
            draft.write_bytes(_safetensors(tensors, _as_text(meta or {})))
        else:
            with draft.open('wb') as file:  # torch's own opening hides the system's reason
                torch.save({'state_dict': tensors, 'meta': dict(meta or {})}, file)
    return path


def _check_types(state: StateDict, suffix: str) -> None:
    """Write one number of each unusual type to memory: what a format holds differs between versions."""
    kinds = {value.dtype: (key, value) for key, value in state.items()}
    for key, value in (kinds[dtype] for dtype in kinds.keys() - _USUAL):
        try:
            sample = {key: _plain(value[(slice(0, 1),) * value.dim()])}
            if suffix == '.safetensors':
                _safetensors(sample, {})
            else:
                torch.save(sample, io.BytesIO())
        except Exception as error:  # each format has its own way to say so
            raise WeightsError(
                f'{key} is {value.dtype}, which cannot be written to a {suffix or "torch.save"} file here: take '
                'another suffix (.pth, .safetensors), or another torch'
            ) from error


def _as_text(meta: Mapping[str, Any]) -> dict[str, str]:
    """Metadata of a safetensors file: what other programs may look for, and all of ours for our reader."""
    strings = {key: value for key, value in meta.items() if isinstance(value, str)}
    return {'format': 'pt', **strings, METADATA: json.dumps(dict(meta))}


def _safetensors(tensors: StateDict, metadata: dict[str, str]) -> bytes:
    from safetensors.torch import save  # save_file would make the file private

    return save(tensors, metadata=metadata)


def _plain(value: Tensor) -> Tensor:
    """A tensor with numbers of its own, in its dtype; views that only note a conjugation or a sign are worked out."""
    value = value.detach().cpu()
    value = value.resolve_conj() if value.is_complex() else value
    return value.resolve_neg().clone().contiguous() if not value.is_quantized else value.clone().contiguous()


def plain_metadata(meta: Any) -> Any:
    """Metadata as strings, numbers, and lists and dicts of them; other objects become the name of their type.

    Raises:
        UserError: it is too large or too deeply nested, probably self-referential.
    """
    parts = 0

    def plain(value: Any, depth: int) -> Any:
        nonlocal parts
        parts += 1
        if parts > _MAX_PARTS or depth > _MAX_DEPTH:
            raise UserError(
                f'metadata of more than {_MAX_PARTS} parts, or {_MAX_DEPTH} levels deep, is not written: get the '
                'original file'
            )
        if isinstance(value, Mapping):
            return {str(key): plain(part, depth + 1) for key, part in value.items() if part is not None}
        if isinstance(value, Tensor) or _is_of_numpy(value):
            if math.prod(max(size, 1) for size in value.shape) > _MAX_PARTS:  # also where one size is 0
                return type(value).__name__
            value = value.tolist()
        if isinstance(value, list | tuple):
            return [plain(part, depth + 1) for part in value]
        return value if value is None or isinstance(value, str | int | float) else type(value).__name__

    return plain(meta, 0)


def _is_of_numpy(value: Any) -> bool:
    numpy = sys.modules.get('numpy')  # where it is absent, nothing is of it
    return numpy is not None and isinstance(value, numpy.ndarray | numpy.generic)


def published_name(path: str | Path) -> Path:
    """The path with the start of the file's SHA-256 in its name: ``NAME-1a2b3c4d.pth``; the file is renamed."""
    path = Path(path)
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256') if hasattr(hashlib, 'file_digest') else _digest(file)
    return path.rename(path.with_name(f'{path.stem}-{digest.hexdigest()[:HASH_DIGITS]}{path.suffix}'))


def _digest(file: Any) -> Any:
    digest = hashlib.sha256()  # Python 3.10 has no file_digest
    while block := file.read(1 << 20):
        digest.update(block)
    return digest
