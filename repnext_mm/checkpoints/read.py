"""Reading weight files: nothing in them is executed unless the user says so."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repnext_mm.checkpoints._reader import (
    NotReadError,
    RefusedGlobalError,
    format_of,
    is_torchscript,
    is_whole_file,
    read_file,
)
from repnext_mm.checkpoints.download import downloaded
from repnext_mm.checkpoints.errors import WeightsError
from repnext_mm.errors import MissingFileError

__all__ = ['StateDict', 'is_whole_file', 'one_sentence', 'read_checkpoint']

StateDict = dict[str, Tensor]


def read_checkpoint(path: str | Path, *, trust_pickle: bool = False) -> Mapping[str, Any]:
    """The content of a weight file, tensors on the CPU.

    Args:
        path: a file of ``torch.save``, TorchScript or safetensors, whatever its name; or an ``http(s)://`` address,
            which is downloaded once into torch's hub cache.
        trust_pickle: let the file build any Python object, which can run any code in it. Only for files of one's own.

    Returns:
        What was saved; of a TorchScript archive and a safetensors file, ``{'state_dict': tensors}``.

    Raises:
        MissingFileError: there is no such file.
        WeightsError: the file is no checkpoint, is damaged, or holds objects that could run code.
    """
    local = _local(path)
    with one_sentence(path):
        content = _content(local, trust_pickle=trust_pickle)
    if isinstance(content, nn.Module):  # of a trusted file
        content = {'model': content}
    if not isinstance(content, Mapping):
        raise WeightsError(f'{path} holds a {type(content).__name__}: a weight file is a dict of tensors')
    return content


@contextmanager
def one_sentence(path: str | Path) -> Iterator[None]:
    """Say in one sentence what is wrong with a file, whatever its readers raise.

    Raises:
        WeightsError: the file is damaged, or holds objects that could run code.
    """
    try:
        yield
    except RefusedGlobalError as error:
        raise WeightsError(
            f"{path} was not read: it asks for '{error.name}', and unpickling that could run code; ask its author for "
            'plain tensors, or, if you trust the file, convert it with tools/checkpoint.py convert --trust-pickle'
        ) from error
    except NotReadError as error:
        raise WeightsError(f'{path} was not read: {error}') from error
    except ImportError as error:
        raise WeightsError(f'reading {path} needs a package that is absent ({error}): install it first') from error
    except Exception as error:  # arbitrary bytes go through zip, pickle, numpy and torch: anything may be raised there
        reason = next(iter(str(error).strip().splitlines()), '') or type(error).__name__
        reason = ascii(reason)[1:-1] if not reason.isprintable() else reason
        raise WeightsError(f'{path} is not a weight file, or is damaged ({reason[:200]}): get it again') from error


def _content(path: Path, *, trust_pickle: bool) -> Any:
    if trust_pickle and format_of(path) != 'safetensors' and not is_torchscript(path):
        return torch.load(path, map_location='cpu', weights_only=False)
    return read_file(path)


def _local(path: str | Path) -> Path:
    name = str(path)
    if name[:8].lower().startswith(('http://', 'https://')):
        return downloaded(name)
    local = Path(os.path.expanduser(name.removeprefix('file://')))  # leaves an unknown user's name as it is
    if local.is_dir():
        shards = any(local.glob('*.distcp'))
        hint = 'convert it by torch.distributed.checkpoint.format_utils.dcp_to_torch_save' if shards else 'give a file'
        raise MissingFileError(f'no weight file at {name}, which is a folder: {hint}')
    if not local.is_file():
        raise MissingFileError(f'no weight file at {name}: give the path of a file')
    return local
