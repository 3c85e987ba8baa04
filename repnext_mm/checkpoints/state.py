"""Finding the weights inside a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .read import StateDict
from .rename import current_names

# Where the writers of this ecosystem put the weights: mmengine and timm, then the authors.
_ENTRIES = ('state_dict', 'model')


def state_dict_of(content: Mapping[str, Any]) -> StateDict:
    """The weights inside a checkpoint: its ``state_dict`` or ``model`` entry, or the content itself.

    The prefix ``module.`` that data-parallel training leaves is removed.

    Raises:
        ValueError: there are no tensors.
    """
    entries = [content[name] for name in _ENTRIES if isinstance(content.get(name), Mapping)]
    state = {key: value for key, value in (entries[0] if entries else content).items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f'no tensors among the entries {sorted(map(str, content))[:8]}: not a weight file')
    if all(key.startswith('module.') for key in state):
        state = {key.removeprefix('module.'): value for key, value in state.items()}
    return state


def model_state(content: Mapping[str, Any]) -> StateDict:
    """The weights of a whole model, under the names of the package versions in use.

    Raises:
        ValueError: there are no tensors.
    """
    return current_names(state_dict_of(content))
