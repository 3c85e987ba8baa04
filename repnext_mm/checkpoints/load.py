"""Loading weights: strict, all or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .errors import WeightsError
from .read import StateDict
from .recognise import recognise
from .rename import classifier_names


@dataclass(frozen=True)
class LoadReport:
    """What a load did."""

    loaded: int  # tensors of the model that were set
    expected: int  # tensors of the model
    dropped: tuple[str, ...] = ()  # keys of the file that were left out on purpose

    def __str__(self) -> str:
        heads = sorted({key.split('.')[0] for key in self.dropped})
        note = f', dropped {len(self.dropped)} tensors of {", ".join(heads)}' if self.dropped else ''
        return f'loaded {self.loaded}/{self.expected} tensors{note}'


def backbone_state(state: StateDict, *, prefix: str | None = None) -> tuple[StateDict, tuple[str, ...]]:
    """The backbone's part of a state dict, and the keys that are not part of it.

    With ``prefix``, the part below that prefix; otherwise the part below ``backbone.`` when there is one, else
    everything but a classifier's head (``head.*``, ``head_dist.*``).

    Raises:
        WeightsError: nothing stands below ``prefix``.
    """
    if prefix is None and any(key.startswith('backbone.') for key in state):
        prefix = 'backbone.'
    if prefix is not None:
        prefix = prefix.rstrip('.') + '.'
        below = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if not below:
            tops = sorted({key.split('.')[0] for key in state})
            raise WeightsError(f'no key below prefix {prefix!r}: the file has {", ".join(tops)}')
        return below, tuple(key for key in state if not key.startswith(prefix))
    heads = tuple(key for key in state if key.split('.')[0] in ('head', 'head_dist'))
    return {key: value for key, value in state.items() if key not in heads}, heads


def check_fits(
    state: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    *,
    name: str = 'model',
    source: str,
    reset: Sequence[str] = (),
    dropped: tuple[str, ...] = (),
) -> tuple[StateDict, LoadReport]:
    """The weights to load into a model, once every key and shape of both is seen to agree.

    Args:
        state: the weights, keys relative to the model; those of a bare classification file may stand for MMPretrain's.
        target: the model's own state dict.
        name: what the model is called in errors.
        source: what the file is called in errors.
        reset: prefixes of keys that may be missing or of another shape, and are then left out.
        dropped: keys of the file that are left out on purpose, for the report.

    Raises:
        WeightsError: a key is missing or unexpected, or a shape differs.
    """
    state = classifier_names(state, target)
    prefixes = tuple(reset)
    kept = {
        key: value
        for key, value in state.items()
        if not key.startswith(prefixes) or (key in target and value.shape == target[key].shape)
    } if prefixes else dict(state)  # fmt: skip
    missing = {key for key in target.keys() - kept.keys() if not (prefixes and key.startswith(prefixes))}
    unexpected = kept.keys() - target.keys()
    if missing or unexpected:
        raise WeightsError(
            f'{source} does not fit this {name}: {_listed("missing", missing)}, {_listed("unexpected", unexpected)}; '
            f'{_way_out(state, target)}'
        )
    for key, value in kept.items():
        if value.shape != target[key].shape:
            raise WeightsError(
                f'{source} does not fit this {name}: {key} has shape {tuple(value.shape)}, the model '
                f'{tuple(target[key].shape)}; {_way_out(state, target)}'
            )
        if value.is_floating_point() != target[key].is_floating_point():
            raise WeightsError(
                f'{source} does not fit this {name}: {key} is {value.dtype}, the model {target[key].dtype}; '
                'quantised or converted weights cannot be loaded, get the original file'
            )
    left_out = dropped + tuple(key for key in state if key not in kept)
    return kept, LoadReport(len(kept), len(target), left_out)


def load_strictly(model: nn.Module, state: StateDict, *, dropped: tuple[str, ...] = (), source: str) -> LoadReport:
    """Copy a state dict into a model whose keys and shapes it matches exactly; see ``check_fits``.

    Raises:
        WeightsError: the two do not agree; the model is then unchanged.
    """
    kept, report = check_fits(state, model.state_dict(), name=type(model).__name__, source=source, dropped=dropped)
    model.load_state_dict(kept, strict=True)
    return report


def _way_out(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> str:
    """What is likely wrong, by what both sides are."""
    found, wanted = recognise(state, {}), recognise(target, {})
    if found.form == 'merged':
        return (
            "the file holds a form that is made for speed: save form='default' instead, load that with deploy=True, "
            'and fuse again with form=...'
        )
    if found.form == 'keep_norms' and wanted.task != 'backbone':
        return (
            "the file holds a fused network of the authors, whose branches are gone and whose norms are left: take the "
            "file in train form (without '_fused'), or load this one into a backbone with deploy=True"
        )
    if found.form in ('default', 'keep_norms') and wanted.form == 'train':
        return (
            'the file holds a fused network, whose branches are gone: build the backbone with deploy=True to run it, '
            'or get the train form to train on'
        )
    if found.form in ('train', 'keep_norms') and wanted.form == 'default':
        return (
            'the file is not fused (or keeps norms) and the backbone is built with deploy=True: build it with '
            'deploy=False, or write a fused file with tools/checkpoint.py fuse'
        )
    if found.arch != wanted.arch:
        return f'the file is a RepNeXt of {found.arch}, the model of {wanted.arch}: set arch'
    if found.task != wanted.task:
        return f'the file is a {found.task}, the model a {wanted.task}: take the file of that task'
    return 'set num_classes and the other sizes as they were in training'


def _listed(what: str, keys: Iterable[str]) -> str:
    names = sorted(keys)
    shown = ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
    return f'{len(names)} {what}' + (f' ({shown})' if names else '')
