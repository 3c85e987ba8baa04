"""Reading weight files: nothing in them is executed unless the user says so."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .safe_pickle import RefusedGlobalError, load_safely

StateDict = dict[str, Tensor]

# What torch raises, according to where a damaged file breaks off.
_DAMAGED = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError,
    UnicodeDecodeError, AssertionError, OverflowError, MemoryError, zipfile.BadZipFile, OSError,
)  # fmt: skip


def read_checkpoint(path: str | Path, *, trust_pickle: bool = False) -> Mapping[str, Any]:
    """The content of a weight file, tensors on the CPU.

    Args:
        path: a ``torch.save`` file, a TorchScript archive or a ``.safetensors`` file; or an ``http(s)://`` address,
            which is downloaded once into torch's hub cache.
        trust_pickle: let the file build any Python object, which can run any code in it. Only for files of one's own.

    Returns:
        What was saved; of a TorchScript archive and a safetensors file, ``{'state_dict': tensors}``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint, is damaged, or holds objects that could run code.
    """
    local = _local(path)
    try:
        content = _content(local, trust_pickle=trust_pickle)
    except RefusedGlobalError as error:
        raise ValueError(
            f"{path} was not read: it asks for '{error.name}', and unpickling that could run code; ask its author for "
            'plain tensors, or, if you trust the file, convert it with tools/checkpoint.py convert --trust-pickle'
        ) from error
    except _DAMAGED as error:
        reason = next(iter(str(error).strip().splitlines()), '') or type(error).__name__
        raise ValueError(f'{path} is no weight file, or is damaged ({reason[:200]}): get it again') from error
    if not isinstance(content, Mapping):
        raise ValueError(f'{path} holds a {type(content).__name__}: a weight file is a dict of tensors')
    return content


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive, such as the authors' ``*_fused.pt``."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith('/constants.pkl') or '/code/' in name for name in archive.namelist())


def _content(path: Path, *, trust_pickle: bool) -> Any:
    if path.suffix == '.safetensors':
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return {'state_dict': load_file(path)}
        except SafetensorError as error:
            raise ValueError(str(error)) from error
    if is_torchscript(path):
        return {'state_dict': dict(torch.jit.load(str(path), map_location='cpu').state_dict())}
    if trust_pickle:
        return torch.load(path, map_location='cpu', weights_only=False)
    return load_safely(path)


def _local(path: str | Path) -> Path:
    name = str(path)
    if name.startswith(('http://', 'https://')):
        folder = Path(torch.hub.get_dir()) / 'checkpoints'
        folder.mkdir(parents=True, exist_ok=True)
        local = folder / name.rsplit('/', 1)[-1]
        if not local.exists():
            torch.hub.download_url_to_file(name, str(local), progress=False)
        return local
    local = Path(name.removeprefix('file://')).expanduser()
    if not local.is_file():
        raise FileNotFoundError(f'no weight file at {name}: give the path of a file')
    return local
