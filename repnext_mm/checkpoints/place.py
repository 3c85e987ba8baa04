"""Where a model's tensors stand in a file: below which start of its keys, and under whose names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from repnext_mm.checkpoints.read import StateDict
from repnext_mm.checkpoints.rename import carries_nothing, spellings

HEADS = ('head', 'head_dist')  # of a classifier, beside the backbone's parts


class Placement(NamedTuple):
    """Where a model's tensors stand."""

    prefix: str  # '' or 'backbone.', ...
    names: Mapping[str, str]  # of the model's tensors below the prefix, by their names in the model


def placements(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], *, optional: Sequence[str] = ()
) -> list[Placement]:
    """All places in a state dict where every tensor of a model stands in its shape; counters do not count.

    Args:
        state: the weights of a file.
        target: the model's own state dict.
        optional: prefixes of the model's keys that may be missing.
    """
    needed = [key for key in target if not carries_nothing(key) and not key.startswith(tuple(optional))]
    if not needed:
        return [Placement('', {key: key for key in target})]
    for names in spellings(target):
        longest = max((names[key] for key in needed), key=len)  # the fewest coincidences
        prefixes = [key[: -len(longest)] for key in state if key == longest or key.endswith(f'.{longest}')]
        found = [
            Placement(prefix, names)
            for prefix in prefixes
            if all(_agrees(state.get(prefix + names[key]), key, names[key], target[key]) for key in needed)
        ]
        if found:
            return found
    return []


def placed(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], where: Placement, *, part: bool
) -> tuple[StateDict, tuple[str, ...]]:
    """What stands below a prefix, under the model's names, and the keys that are left out on purpose.

    Those are all beside the prefix and, of a model that is a ``part`` (a backbone), a classifier's head beside it.
    """
    keys = {name: key for key, name in where.names.items()}
    found: StateDict = {}
    dropped = []
    for name, value in state.items():
        below = name.removeprefix(where.prefix)
        key = keys.get(below, below)
        if not name.startswith(where.prefix) or (part and key not in target and below.split('.')[0] in HEADS):
            dropped.append(name)
        else:
            like = target.get(key)
            linear = like is not None and below != key and _is_pointwise(value, like)
            found[key] = value.reshape(like.shape) if linear and like is not None else value
    return found, tuple(dropped)


def _agrees(value: Tensor | None, key: str, name: str, like: Tensor) -> bool:
    return value is not None and (value.shape == like.shape or (key != name and _is_pointwise(value, like)))


def _is_pointwise(value: Tensor, like: Tensor) -> bool:
    """Whether one is a linear layer's weight and the other the same as a 1x1 convolution's, or they agree."""
    return {value.dim(), like.dim()} <= {2, 4} and value.numel() == like.numel() and (value.shape[:2] == like.shape[:2])
