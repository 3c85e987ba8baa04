"""Finding the weights inside a checkpoint, wherever its writer put them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repnext_mm.checkpoints.errors import WeightsError
from repnext_mm.checkpoints.read import StateDict
from repnext_mm.checkpoints.rename import current_names, unwrapped

# Where writers put the weights, the likeliest first: mmengine and timm, the authors, PyTorch's tutorial, and others.
ENTRIES = ('state_dict', 'model', 'model_state_dict', 'module', 'net', 'network', 'weights', 'params')
_AVERAGED = re.compile(r'(^|[._])(ema|swa|avg|averaged?)([._]|$)')
_NO_WEIGHTS = re.compile(r'optim|sched|scaler|rng|callback|loops|hparams|hyper|^(meta|message_hub|args|config|cfg)$')
_DEPTH = 2  # some keep the weights in `state`, in `model`
_SHOWN = 5


def weights_in(content: Mapping[str, Any]) -> dict[str, StateDict]:
    """All tensors under names that a checkpoint holds, by the dotted name of their entry; ``''`` is the content itself.

    Of a whole module, which only ``trust_pickle`` reads, its state dict. Optimizers, logs and the like are passed over.
    """
    found: dict[str, StateDict] = {}
    seen: set[int] = set()

    def look(name: str, value: Any, depth: int) -> None:
        if isinstance(value, nn.Module):
            value = value.state_dict()
        if not isinstance(value, Mapping) or id(value) in seen:
            return
        seen.add(id(value))
        named = [(key, part) for key, part in plain_dict(value).items() if isinstance(key, str)]
        state = {key: part for key, part in named if isinstance(part, Tensor)}
        if state:
            found[name] = state
        if depth < _DEPTH:
            for key, part in named:
                if isinstance(part, Mapping | nn.Module) and not _NO_WEIGHTS.search(key):
                    look(f'{name}.{key}' if name else key, part, depth + 1)

    look('', content, 0)
    weights = {name: state for name, state in found.items() if any(value.dim() for value in state.values())}
    return weights or found  # a loss or a counter beside the weights is none


def is_averaged(name: str, content: Mapping[str, Any]) -> bool:
    """Whether the weights of an entry, or below a prefix, are an average (EMA) over the training.

    mmengine stores the averaged ones as ``state_dict``, and the raw ones as ``ema_state_dict``.
    """
    entry = name.split('.')[0]
    if entry in ('state_dict', 'ema_state_dict') and _by_mmengine(content):
        return entry == 'state_dict'
    return bool(_AVERAGED.search(name.lower()))


def ranked(names: Sequence[str], content: Mapping[str, Any], *, ema: bool = False) -> list[str]:
    """Of the names of entries, those that are meant: averaged ones only if asked for, or alone; the likeliest first.

    Several come back only where nothing tells which is meant.
    """
    averaged = [name for name in names if is_averaged(name, content)]
    raw = [name for name in names if name not in averaged or name == 'state_dict']
    pool = averaged if ema else raw or averaged
    best = min(map(_rank, pool), default=0)
    return [name for name in pool if _rank(name) == best]


def state_dict_of(content: Mapping[str, Any], *, prefix: str | None = None, ema: bool = False) -> StateDict:
    """The weights inside a checkpoint, where no model tells which are meant: the likeliest entry's.

    What wrappers add to names (``module.`` of data-parallel training, ``_orig_mod.`` of ``torch.compile``) is removed.

    Args:
        content: what ``read_checkpoint`` gave.
        prefix: an entry, such as ``'model_ema'``, or the start of the keys that are meant.
        ema: take the averaged weights.

    Raises:
        WeightsError: there are no tensors under names, one that holds no plain numbers, or several that may be meant.
    """
    found = weights_in(content)
    if not found:
        raise WeightsError(f'no tensors among the entries {shown_entries(content)[:8]}: not a weight file')
    if prefix is not None:
        return checked(_below(found, prefix.rstrip('.'), content))
    names = ranked(list(found), content, ema=ema)
    if not names:
        raise WeightsError(f'no averaged weights among {listed(found)}: omit ema')
    if len(names) > 1:
        raise WeightsError(f'{listed(names)} all hold weights: choose one with prefix={names[0] + "."!r}')
    return unwrapped(checked(found[names[0]]))


def checked(state: StateDict) -> StateDict:
    """The same weights, all of which hold plain numbers under names that can be printed.

    Raises:
        WeightsError: one does not.
    """
    for key, value in state.items():
        if not key.isprintable() or len(key) > 1000:
            raise WeightsError(f'{key[:100]!a} is not a name of a weight: the file is damaged, get it again')
        if value.layout is not torch.strided or value.is_meta or value.is_nested:
            raise WeightsError(
                f'{key} does not hold plain numbers ({value.layout}, {value.device}): get the original file'
            )
    return state


def shown_entries(content: Mapping[Any, Any]) -> list[str]:
    """The names of a checkpoint's entries, sorted; what cannot be printed is escaped."""
    return sorted(
        ascii(str(key))[1:-1][:100] if not str(key).isprintable() else str(key)[:100] for key in plain_dict(content)
    )


def model_state(content: Mapping[str, Any]) -> StateDict:
    """The weights of a whole model, under the names of the package versions in use.

    Raises:
        WeightsError: there are no tensors.
    """
    return current_names(state_dict_of(content))


def _rank(name: str) -> int:
    if name in ENTRIES:
        return ENTRIES.index(name)
    return len(ENTRIES) if not name else len(ENTRIES) + 1


def _below(found: Mapping[str, StateDict], prefix: str, content: Mapping[str, Any]) -> StateDict:
    """The weights of an entry of this name, or below this start of keys, in any entry."""
    if prefix in found:
        return unwrapped(found[prefix])
    for name in [*ranked(list(found), content), *found]:
        for start, state in ((prefix, found[name]), (prefix, unwrapped(found[name]))):
            below = {key[len(start) + 1 :]: value for key, value in state.items() if key.startswith(f'{start}.')}
            if below:
                return unwrapped(below)
        inner = prefix.removeprefix(f'{name}.')
        if inner != prefix:
            return _below({'': found[name]}, inner, content)
    tops = sorted({key.split('.')[0] for state in found.values() for key in state} | set(filter(None, found)))
    raise WeightsError(f"no key below prefix '{prefix[:100]}.': the file has {listed(tops)}")


def _by_mmengine(content: Mapping[str, Any]) -> bool:
    names = {key for key in plain_dict(content) if isinstance(key, str)}
    meta = plain_dict(content)['meta'] if {'ema_state_dict', 'meta'} <= names else None
    return isinstance(meta, Mapping) and 'mmengine_version' in plain_dict(meta)


def plain_dict(mapping: Mapping[Any, Any]) -> dict[Any, Any]:
    """The entries of a mapping, also of one whose methods a file has replaced."""
    return dict(dict.items(mapping) if isinstance(mapping, dict) else mapping.items())


def listed(names: Mapping[str, Any] | Sequence[str]) -> str:
    """A few names, and how many more there are."""
    shown = [ascii(name)[1:-1][:100] if name else 'the content itself' for name in names]
    return ', '.join(shown[:_SHOWN]) + (f' and {len(shown) - _SHOWN} more' if len(shown) > _SHOWN else '')
