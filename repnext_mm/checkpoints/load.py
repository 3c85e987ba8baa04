"""Loading weights into a backbone: strict, all or nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from .read import StateDict


@dataclass(frozen=True)
class LoadReport:
    """What a load did."""

    loaded: int  # tensors of the model that were set
    expected: int  # tensors of the model
    dropped: tuple[str, ...]  # keys of the file that are no part of a backbone

    def __str__(self) -> str:
        heads = sorted({key.split('.')[0] for key in self.dropped})
        note = f', dropped {len(self.dropped)} tensors of {", ".join(heads)}' if self.dropped else ''
        return f'loaded {self.loaded}/{self.expected} tensors{note}'


def backbone_state(state: StateDict, *, prefix: str | None = None) -> tuple[StateDict, tuple[str, ...]]:
    """The backbone's part of a state dict, and the keys that are not part of it.

    With ``prefix``, the part below that prefix; otherwise the part below ``backbone.`` when there is one, else
    everything but a classifier's head (``head.*``, ``head_dist.*``).

    Raises:
        ValueError: nothing stands below ``prefix``.
    """
    if prefix is None and any(key.startswith('backbone.') for key in state):
        prefix = 'backbone.'
    if prefix is not None:
        prefix = prefix.rstrip('.') + '.'
        below = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if not below:
            tops = sorted({key.split('.')[0] for key in state})
            raise ValueError(f'no key below prefix {prefix!r}: the file has {", ".join(tops)}')
        return below, tuple(key for key in state if not key.startswith(prefix))
    heads = tuple(key for key in state if key.split('.')[0] in ('head', 'head_dist'))
    return {key: value for key, value in state.items() if key not in heads}, heads


def load_strictly(model: nn.Module, state: StateDict, *, dropped: tuple[str, ...] = (), source: str) -> LoadReport:
    """Copy a state dict into a model whose keys and shapes it matches exactly.

    Args:
        model: the model.
        state: the weights, keys relative to ``model``.
        dropped: keys of the file that are left out on purpose, for the report.
        source: the name of the file, for the errors.

    Raises:
        ValueError: a key is missing or unexpected, or a shape differs; the model is then unchanged.
    """
    target = model.state_dict()
    missing, unexpected = target.keys() - state.keys(), state.keys() - target.keys()
    if missing or unexpected:
        raise ValueError(
            f'{source} does not fit this {type(model).__name__}: {_listed("missing", missing)}, '
            f'{_listed("unexpected", unexpected)}; check arch and deploy'
        )
    for key, value in state.items():
        if value.shape != target[key].shape:
            raise ValueError(
                f'{source} does not fit this {type(model).__name__}: {key} has shape {tuple(value.shape)}, '
                f'the model {tuple(target[key].shape)}; check arch'
            )
    model.load_state_dict(state, strict=True)
    return LoadReport(len(state), len(target), dropped)


def _listed(what: str, keys: Iterable[str]) -> str:
    names = sorted(keys)
    shown = ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
    return f'{len(names)} {what}' + (f' ({shown})' if names else '')
