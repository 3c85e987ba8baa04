"""Loading weights, strictly, all or nothing: where a model's tensors stand in a file, and under whose names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from repnext_mm.checkpoints.read import (
    ENTRIES,
    StateDict,
    carries_nothing,
    checked,
    is_averaged,
    listed,
    ranked,
    recognize,
    state_dict_of,
    unwrapped,
    weights_in,
)
from repnext_mm.errors import WeightsError

_HALF = 2  # bytes of the narrowest type that holds weights as they were trained
_HEADS = ('head', 'head_dist')  # of a classifier, beside the backbone's parts

# Name in a classifier of MMPretrain -> name in a file, for each writer: the authors and timm (a fused head is one
# layer); and for ConvNeXt timm and Facebook, with the authors' downsampling.
_SPELLINGS: tuple[tuple[tuple[str, str], ...], ...] = (
    ((r'^backbone\.', ''), (r'^head\.fc\.', 'head.')),
    (
        (r'^backbone\.norm3\.', 'head.norm.'),
        (r'^backbone\.', ''),
        (r'^downsample_layers\.0\.', 'stem.'),
        (r'^downsample_layers\.(\d+)\.', r'stages.\1.downsample.'),
        (r'\.token_mixer\.', '.dwconv.'),
        (r'\.channel_mixer\.0\.', '.pwconv1.'),
        (r'\.channel_mixer\.2\.', '.pwconv2.'),
        (r'^stages\.(\d+)\.(\d+)\.', r'stages.\1.blocks.\2.'),
        (r'\.depthwise_conv\.', '.conv_dw.'),
        (r'\.pointwise_conv(\d)\.', r'.mlp.fc\1.'),
    ),
    (
        (r'^backbone\.norm3\.', 'norm.'),
        (r'^backbone\.', ''),
        (r'^head\.fc\.', 'head.'),
        (r'\.(token_mixer|depthwise_conv)\.', '.dwconv.'),
        (r'\.channel_mixer\.0\.', '.pwconv1.'),
        (r'\.channel_mixer\.2\.', '.pwconv2.'),
        (r'\.pointwise_conv(\d)\.', r'.pwconv\1.'),
    ),
)


@dataclass(frozen=True)
class LoadReport:
    """What a load did."""

    loaded: int  # tensors of the model that were set
    expected: int  # tensors of the model
    dropped: tuple[str, ...] = ()  # keys of the file that were left out on purpose
    source: str = ''  # the entry and the start of the keys, where they are not the usual ones or there was a choice
    others: tuple[str, ...] = ()  # what would have fitted as well
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        tops = sorted({key.split('.')[0] for key in self.dropped})
        source = f" of '{self.source}'" if self.source else ''
        others = f' (the file has {listed(self.others)} too)' if self.others else ''
        note = f', dropped {len(self.dropped)} tensors of {listed(tops)}' if self.dropped else ''
        return f'loaded {self.loaded}/{self.expected} tensors{source}{others}{note}' + ''.join(
            f', {note}' for note in self.notes
        )


class _Placement(NamedTuple):
    """Where a model's tensors stand."""

    prefix: str  # '' or 'backbone.', ...
    names: Mapping[str, str]  # of the model's tensors below the prefix, by their names in the model
    others: tuple[str, ...] = ()  # prefixes below which the tensors stand, too: copies and averages


class _Option(NamedTuple):
    """One way in which the tensors of a file fit a model."""

    entry: str
    state: StateDict
    where: _Placement

    @property
    def name(self) -> str:
        """Entry and start of the keys, as ``prefix`` takes them."""
        return '.'.join(filter(None, (self.entry, self.where.prefix.rstrip('.'))))


def fit(
    content: Mapping[str, Any],
    target: Mapping[str, Tensor],
    *,
    name: str = 'model',
    source: str,
    reset: Sequence[str] = (),
    prefix: str | None = None,
    ema: bool = False,
    part: bool = False,
    unused: Sequence[str] = (),
) -> tuple[StateDict, LoadReport]:
    """The weights of a checkpoint to load into a model, under its names, once every key and shape agrees.

    The entry and the start of the keys are found by what fits. Where several do, averaged weights are taken with
    ``ema`` only, and the likeliest of the others; where nothing tells which is meant, that is an error.

    Args:
        content: what ``read_checkpoint`` gave.
        target: the model's own state dict.
        name: what the model is called in errors.
        source: what the file is called in errors.
        reset: prefixes of the model's keys that may be missing or of another shape, and are then left out.
        prefix: an entry, such as ``'model_ema.'``, or the start of the keys to take.
        ema: take the averaged weights.
        part: the model is a part (a backbone) of what the file may hold: a classifier's head is left out.
        unused: parts of names whose tensors belong to nothing that runs.

    Raises:
        WeightsError: nothing fits, or several networks of the file do; or there are no averaged weights.
    """
    if prefix is not None:
        state, left = _without(state_dict_of(content, prefix=prefix), unused)
        kept, report = check_fits(state, target, name=name, source=source, reset=reset, part=part, dropped=left)
        return kept, replace(report, source='' if prefix.rstrip('.') == 'backbone' else prefix.rstrip('.'))
    options: list[_Option] = []
    for entry, state in weights_in(content).items():
        found = _options(entry, _without(state, unused)[0], target, optional=reset)
        options += [option for option in found if not any(_is_same(option, other) for other in options)]
    chosen = _chosen(options, content, source=source, ema=ema)
    if chosen is None:
        state, left = _without(state_dict_of(content, ema=ema), unused)
        return check_fits(state, target, name=name, source=source, reset=reset, part=part, dropped=left)
    _, left = _without(weights_in(content)[chosen.entry], unused)
    state, dropped = _placed(checked(chosen.state), target, chosen.where, part=part)
    kept, report = _verified(state, target, name=name, source=source, reset=reset, dropped=(*left, *dropped))
    others = tuple(dict.fromkeys(option.name for option in options if option.name != chosen.name))
    usual = chosen.entry in ('', *ENTRIES[:2]) and chosen.where.prefix in ('', 'backbone.') and not others
    kinds = tuple(f'{other}, averaged' if is_averaged(other, content) else other for other in others)
    where = chosen.where.prefix.rstrip('.') if chosen.entry in ENTRIES[:2] and not others else ''
    return kept, replace(report, source='' if usual else where or chosen.name or 'its keys', others=kinds)


def backbone_state(state: StateDict, *, prefix: str | None = None) -> tuple[StateDict, tuple[str, ...]]:
    """The backbone's part of a state dict, and the keys that are not part of it.

    With ``prefix``, the part below that prefix; otherwise the part below ``backbone.`` when there is one, else
    everything but a classifier's head (``head.*``, ``head_dist.*``).

    Raises:
        WeightsError: nothing stands below ``prefix``.
    """
    if prefix is None:
        prefix = recognize(state, {}).prefix
    if prefix:
        below = state_dict_of({'state_dict': state}, prefix=prefix)
        start = prefix.rstrip('.') + '.'
        return below, tuple(key for key in state if not key.startswith(start))
    heads = tuple(key for key in state if key.split('.')[0] in _HEADS)
    return {key: value for key, value in state.items() if key not in heads}, heads


def check_fits(
    state: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    *,
    name: str = 'model',
    source: str,
    reset: Sequence[str] = (),
    dropped: tuple[str, ...] = (),
    part: bool = False,
) -> tuple[StateDict, LoadReport]:
    """The same as ``fit``, of a state dict.

    Args:
        state: the weights, under the model's names or those of another writer, below any common start.
        target: see ``fit``, as for the others.
        name: see there.
        source: see there.
        reset: see there.
        dropped: keys of the file that are left out on purpose, for the report.
        part: see there.

    Raises:
        WeightsError: a key is missing or unexpected, or a shape differs.
    """
    options = _options('', state, target, optional=reset)
    chosen = _chosen(options, {}, source=source, ema=False)
    if chosen is not None:
        found, left = _placed(chosen.state, target, chosen.where, part=part)
        prefix = chosen.where.prefix.rstrip('.')
        kept, report = _verified(found, target, name=name, source=source, reset=reset, dropped=(*dropped, *left))
        return kept, replace(report, source='' if prefix == 'backbone' else prefix)
    found, left = backbone_state(unwrapped(state)) if part else (_likeliest_names(state, target), ())
    return _verified(found, target, name=name, source=source, reset=reset, dropped=(*dropped, *left))


def load_strictly(model: nn.Module, state: StateDict, *, dropped: tuple[str, ...] = (), source: str) -> LoadReport:
    """Copy a state dict into a model whose keys and shapes it matches; see ``check_fits``.

    Raises:
        WeightsError: the two do not agree; the model is then unchanged.
    """
    kept, report = check_fits(state, model.state_dict(), name=type(model).__name__, source=source, dropped=dropped)
    model.load_state_dict(kept, strict=True)
    return report


def _placements(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], *, optional: Sequence[str] = ()
) -> list[_Placement]:
    """All places in a state dict where every tensor of a model stands in its shape; counters do not count.

    Args:
        state: the weights of a file.
        target: the model's own state dict.
        optional: prefixes of the model's keys that may be missing.
    """
    needed = [key for key in target if not carries_nothing(key) and not key.startswith(tuple(optional))]
    if not needed:
        return [_Placement('', {key: key for key in target})]
    for names in _spellings(target):
        longest = max((names[key] for key in needed), key=len)  # the fewest coincidences
        prefixes = [key[: -len(longest)] for key in state if key == longest or key.endswith(f'.{longest}')]
        found = [
            _Placement(prefix, names)
            for prefix in prefixes
            if all(_agrees(state.get(prefix + names[key]), key, names[key], target[key]) for key in needed)
        ]
        if found:
            starts = tuple(place.prefix for place in found if place.prefix)
            return [place._replace(others=tuple(s for s in starts if s != place.prefix)) for place in found]
    return []


def _placed(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], where: _Placement, *, part: bool
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
        beside = not name.startswith(where.prefix) or name.startswith(where.others)
        if beside or (part and key not in target and below.split('.')[0] in _HEADS):
            dropped.append(name)
        else:
            like = target.get(key)
            linear = like is not None and below != key and _is_pointwise(value, like)
            found[key] = value.reshape(like.shape) if linear and like is not None else value
    return found, tuple(dropped)


def _options(
    entry: str, state: Mapping[str, Tensor], target: Mapping[str, Tensor], *, optional: Sequence[str]
) -> list[_Option]:
    """The ways in which an entry fits, with as little change to its names as it takes."""
    for everywhere in (False, True):
        bare = unwrapped(state, everywhere=everywhere)
        found = _placements(bare, target, optional=optional)
        if found:
            return [_Option(entry, bare, where) for where in found]
    return []


def _is_same(option: _Option, other: _Option) -> bool:
    """Whether two entries share their tensors: some writers give one dict two names."""
    names = option.where.names.items()
    return other.where.names.keys() == option.where.names.keys() and all(
        option.state.get(option.where.prefix + name) is other.state.get(other.where.prefix + other.where.names[key])
        for key, name in names
    )


def _chosen(options: Sequence[_Option], content: Mapping[str, Any], *, source: str, ema: bool) -> _Option | None:
    """The option that is meant, None where there is none.

    Raises:
        WeightsError: several may be meant.
    """
    names = [option.name for option in options]
    meant = ranked(names, content, ema=ema)
    if len(meant) > 1:  # below one entry: the model's own names, or those of OpenMMLab's whole models, come first
        for prefix in ('', 'backbone.'):
            own = [option.name for option in options if option.name in meant and option.where.prefix == prefix]
            if len(own) == 1:
                return options[names.index(own[0])]
        raise WeightsError(
            f'{source} holds {len(meant)} networks that fit, {listed(meant)}: choose one with prefix={meant[0] + "."!r}'
        )
    return options[names.index(meant[0])] if meant else None


def _verified(
    state: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    *,
    name: str,
    source: str,
    reset: Sequence[str],
    dropped: tuple[str, ...],
) -> tuple[StateDict, LoadReport]:
    """The weights to load, under the model's names; raises where a key, a shape or a type differs."""
    prefixes = tuple(reset)

    def fits_or_is_reset(key: str, value: Tensor) -> bool:
        if key in target and value.shape == target[key].shape:
            return True
        return not (carries_nothing(key) or (prefixes and key.startswith(prefixes)))

    kept = {key: value for key, value in state.items() if fits_or_is_reset(key, value)}
    absent = target.keys() - kept.keys()
    own = {key for key in absent if carries_nothing(key)}
    missing = {key for key in absent - own if not (prefixes and key.startswith(prefixes))}
    unexpected = kept.keys() - target.keys()
    if missing or unexpected:
        raise WeightsError(
            f'{source} does not fit this {name}: {_counted("missing", missing)}, {_counted("unexpected", unexpected)}; '
            f'{_way_out(state, target)}'
        )
    for key, value in kept.items():
        like = target[key]
        if value.shape != like.shape:
            raise WeightsError(
                f'{source} does not fit this {name}: {key} has shape {tuple(value.shape)}, the model '
                f'{tuple(like.shape)}; {_way_out(state, target)}'
            )
        if carries_nothing(key):
            kept[key] = value.to(like.dtype)  # averaging over files makes floats of counters
        elif (
            value.is_floating_point() != like.is_floating_point()
            or value.is_quantized
            or (like.is_floating_point() and value.dtype.itemsize < _HALF)
        ):
            raise WeightsError(
                f'{source} does not fit this {name}: {key} is {value.dtype}, the model {like.dtype}; '
                'quantized or converted weights cannot be loaded, get the original file'
            )
    left_out = dropped + tuple(key for key in state if key not in kept)
    broken = [key for key, value in kept.items() if value.is_floating_point() and not value.isfinite().all()]
    said = {f'counters absent: {len(own)}': own, f'NOT FINITE (NaN or infinity) in {listed(broken)}': broken}
    notes = tuple(note for note, keys in said.items() if keys)
    report = LoadReport(len(kept), len(target), left_out, notes=notes)
    return {**kept, **{key: target[key] for key in own}}, report


def _likeliest_names(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> StateDict:
    """A file that does not fit, under the model's names as far as it can be told, for the sentence that says so."""
    bare = unwrapped(state)
    names = max(_spellings(target), key=lambda names: len(bare.keys() & set(names.values())))
    keys = {name: key for key, name in names.items()}
    if not bare.keys() & keys.keys() or not {'stem', 'stages'} <= set(_tops(bare)):
        return bare
    outside = '' if 'stem' in _tops(target) else 'backbone.'
    return {keys.get(key, key if key.startswith('head.') else outside + key): value for key, value in bare.items()}


def _without(state: StateDict, unused: Sequence[str]) -> tuple[StateDict, tuple[str, ...]]:
    left = tuple(key for key in state if any(word in key.split('.') for word in unused))
    return {key: value for key, value in state.items() if key not in left} if left else state, left


def _way_out(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> str:
    """What is likely wrong, by what both sides are."""
    for pattern, reason in _COMPUTED:
        if any(re.search(pattern, key) for key in state) and not any(re.search(pattern, key) for key in target):
            return reason
    found, wanted = recognize(state, {}), recognize(target, {})
    if found.arch and wanted.arch and found.arch != wanted.arch:
        return f'the file is a RepNeXt of {found.arch}, the model of {wanted.arch}: set arch'
    if found.form == 'merged':
        return (
            "the file holds a form that is made for speed: save form='default' instead, load that with deploy=True, "
            'and fuse again with form=...'
        )
    if found.form == 'keep_norms' and wanted.form != 'keep_norms' and wanted.task != 'backbone':
        return (
            'the file holds a fused network of the authors, whose branches are gone and whose norms are left: take the '
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
    if found.task != wanted.task and found.task != 'unknown' and wanted.task != 'unknown':
        return f'the file is a {found.task}, the model a {wanted.task}: take the file of that task'
    common = _common_start(state)
    if common and not any(key.startswith(common) for key in target):
        return f'all keys begin with {common!r}: give prefix={common!r} if the network stands below it'
    if not target.keys() & state.keys():
        return (
            f'the file holds another network, its keys begin with {listed(_tops(state))}, those of the model with '
            f'{listed(_tops(target))}: take the file of this network'
        )
    if target.keys() <= state.keys() and all(state[key].shape == value.shape for key, value in target.items()):
        return 'the file holds more than this network: save it without what is unexpected'
    return 'set num_classes and the other sizes as they were in training'


_COMPUTED = (
    (r'\.(weight|bias)_mask$', 'its weights are pruned: call torch.nn.utils.prune.remove on the layers before saving'),
    (r'\.parametrizations\.', 'its weights are parametrized: call remove_parametrizations on the layers before saving'),
    (r'\.weight_([gvu]|orig)$', 'its weights are computed by weight_norm or spectral_norm: remove it before saving'),
    (r'\.lora_\w+|\.base_layer\.', 'it holds adapters beside the weights: merge them into the weights before saving'),
)
"""What takes the place of weights that are computed from others, and the way out."""


def _common_start(state: Mapping[str, Tensor]) -> str:
    parts = [key.split('.')[:-1] for key in state if not carries_nothing(key)]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return '.'.join(common) + '.' if common else ''


def _tops(state: Iterable[str]) -> list[str]:
    return sorted({key.split('.')[0] for key in state})


def _counted(what: str, keys: Iterable[str]) -> str:
    names = sorted(keys)
    shown = ', '.join(name[:100] for name in names[:3]) + (', ...' if len(names) > 3 else '')
    return f'{len(names)} {what}' + (f' ({shown})' if names else '')


def _spellings(target: Mapping[str, Tensor]) -> Iterator[dict[str, str]]:
    """The names that a model's tensors may have in a file, by their names in the model; the model's own come first."""
    yield {key: key for key in target}
    if {key.split('.')[0] for key in target} == {'backbone', 'head'}:
        for rules in _SPELLINGS:
            named = {}
            for key in target:
                name = key
                for pattern, replacement in rules:
                    name = re.sub(pattern, replacement, name)
                named[key] = name
            yield named


def _agrees(value: Tensor | None, key: str, name: str, like: Tensor) -> bool:
    return value is not None and (value.shape == like.shape or (key != name and _is_pointwise(value, like)))


def _is_pointwise(value: Tensor, like: Tensor) -> bool:
    """Whether one is a linear layer's weight and the other the same as a 1x1 convolution's, or they agree."""
    return {value.dim(), like.dim()} <= {2, 4} and value.numel() == like.numel() and (value.shape[:2] == like.shape[:2])
