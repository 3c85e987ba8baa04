"""Finding the weights inside a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import WeightsError
from .read import StateDict
from .rename import current_names

# Where the writers of this ecosystem put the weights: mmengine and timm, then the authors.
_ENTRIES = ('state_dict', 'model')


def state_dict_of(content: Mapping[str, Any]) -> StateDict:
    """The weights inside a checkpoint: its ``state_dict`` or ``model`` entry, or the content itself.

    The prefix ``module.`` that data-parallel training leaves is removed.

    Raises:
        WeightsError: there are no tensors under names, or one that holds no plain numbers.
    """
    entries = [content[name] for name in _ENTRIES if isinstance(content.get(name), Mapping)]
    named = (entries[0] if entries else content).items()
    state = {key: value for key, value in named if isinstance(key, str) and isinstance(value, Tensor)}
    if not state:
        raise WeightsError(f'no tensors among the entries {shown_entries(content)[:8]}: not a weight file')
    for key, value in state.items():
        if not key.isprintable() or len(key) > 1000:
            raise WeightsError(f'{key[:100]!a} is no name of a weight: the file is damaged, get it again')
        if value.layout is not torch.strided or value.is_meta or value.is_nested:
            raise WeightsError(f'{key} holds no plain numbers ({value.layout}, {value.device}): get the original file')
    if all(key.startswith('module.') for key in state):
        state = {key.removeprefix('module.'): value for key, value in state.items()}
    return state


def shown_entries(content: Mapping[Any, Any]) -> list[str]:
    """The names of a checkpoint's entries, sorted; what cannot be printed is escaped."""
    return sorted(ascii(str(key))[1:-1][:100] if not str(key).isprintable() else str(key)[:100] for key in content)


def model_state(content: Mapping[str, Any]) -> StateDict:
    """The weights of a whole model, under the names of the package versions in use.

    Raises:
        WeightsError: there are no tensors.
    """
    return current_names(state_dict_of(content))
