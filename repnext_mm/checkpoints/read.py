"""Reading weight files: plain tensors only, nothing in them is ever executed."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

StateDict = dict[str, Tensor]

# Where the writers of this ecosystem put the weights: mmengine and timm, then the authors.
_WEIGHT_ENTRIES = ('state_dict', 'model')


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """The content of a checkpoint file, on the CPU.

    Args:
        path: a local file, or an ``http(s)://`` address that is downloaded once into torch's hub cache.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint, or holds objects that only unpickling could build.
    """
    name = str(path)
    if name.startswith(('http://', 'https://')):
        folder = Path(torch.hub.get_dir()) / 'checkpoints'
        folder.mkdir(parents=True, exist_ok=True)
        local = folder / name.rsplit('/', 1)[-1]
        if not local.exists():
            torch.hub.download_url_to_file(name, str(local), progress=False)
    else:
        local = Path(path).expanduser()
    if not local.is_file():
        raise FileNotFoundError(f'no checkpoint at {name}: give the path of a weight file')
    try:
        content = torch.load(local, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f'{name} cannot be read as plain tensors ({reason}): convert it to a plain state dict'
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f'{name} holds a {type(content).__name__}: a checkpoint is a dict of tensors')
    return content


def state_dict_of(content: Mapping[str, Any]) -> StateDict:
    """The weights inside a checkpoint: its ``state_dict`` or ``model`` entry, or the content itself.

    The prefix ``module.`` that data-parallel training leaves is removed.

    Raises:
        ValueError: there are no tensors.
    """
    entries = [content[name] for name in _WEIGHT_ENTRIES if isinstance(content.get(name), Mapping)]
    state = {key: value for key, value in (entries[0] if entries else content).items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f'no tensors among the entries {sorted(map(str, content))[:8]}: not a weight file')
    if all(key.startswith('module.') for key in state):
        state = {key.removeprefix('module.'): value for key, value in state.items()}
    return state
