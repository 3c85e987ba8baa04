"""What a weight file holds, read without running anything in it: its weights, wherever their writer put them, and whose
they are: writer, task, form and architecture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from repnext_mm.checkpoints._reader import NotReadError, RefusedGlobalError, format_of, is_torchscript, read_file
from repnext_mm.checkpoints.find import local_file
from repnext_mm.errors import WeightsError

StateDict = dict[str, Tensor]

# Where writers put the weights, the likeliest first: mmengine and timm, the authors, PyTorch's tutorial, and others.
ENTRIES = ('state_dict', 'model', 'model_state_dict', 'module', 'net', 'network', 'weights', 'params')
_AVERAGED = re.compile(r'(^|[._])(ema|swa|avg|averaged?)([._]|$)')
_NO_WEIGHTS = re.compile(r'optim|sched|scaler|rng|callback|loops|hparams|hyper|^(meta|message_hub|args|config|cfg)$')
_DEPTH = 2  # some keep the weights in `state`, in `model`
_SHOWN = 5
# Parts of keys that torch.compile, FSDP, activation checkpointing and DeepSpeed add, anywhere in a name.
_WRAPPERS = {'_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module', '_forward_module'}
# Last parts of keys whose tensors carry nothing: counters of batch norms and of averages, and what thop leaves behind.
_COUNTERS = {'num_batches_tracked', 'n_averaged', 'total_ops', 'total_params'}
_FORMS = {  # a key that only this form of a backbone has
    'train': re.compile(r'conv_s\.conv_3_3\.weight$|channel_mixer\.0\.conv\.weight$'),
    'merged': re.compile(r'blocks\.\d+\.token_mixer\.conv\.weight$'),
    'fused': re.compile(r'conv_s\.weight$|channel_mixer\.0\.weight$'),
}
_LAST_OF_BLOCK = re.compile(r'(?:^|\.)stages\.(\d{1,3})\.blocks\.(\d{1,3})\.channel_mixer\.2(?:\.conv)?\.weight$')
_LONG = 200  # characters of dimensions


def read_checkpoint(path: str | Path, *, trust_pickle: bool = False) -> Mapping[str, Any]:
    """The content of a weight file, tensors on the CPU.

    Args:
        path: a file of ``torch.save``, TorchScript or safetensors, whatever its name; or what stands for one: a
            published name, an ``http(s)://`` address, ``hf-hub:OWNER/NAME`` (see ``local_file``).
        trust_pickle: let the file build any Python object, which can run any code in it. Only for files of one's own.

    Returns:
        What was saved; of a TorchScript archive and a safetensors file, ``{'state_dict': tensors}``.

    Raises:
        MissingFileError: there is no such file.
        WeightsError: the file is not a checkpoint, is corrupt, or holds objects that could run code.
    """
    local = local_file(path)
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
        WeightsError: the file is corrupt, or holds objects that could run code.
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
        raise WeightsError(f'{path} is not a weight file or is corrupt ({reason[:200]}): download it again') from error


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
        arrays = any(type(value).__module__ == 'numpy' for value in plain_dict(content).values())
        hint = 'its weights are arrays, save them as tensors' if arrays else 'not a weight file'
        raise WeightsError(f'no tensors among the entries ({listed(shown_entries(content)) or "none"}): {hint}')
    if prefix is not None:
        return checked(_below(found, prefix.rstrip('.'), content))
    names = ranked(list(found), content, ema=ema)
    if not names:
        raise WeightsError(f'no averaged weights among the entries ({listed(found)}): omit ema (--ema)')
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
            raise WeightsError(f'{key[:100]!a} is not a name of a weight: the file is corrupt, download it again')
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


def unwrapped(state: Mapping[str, Tensor], *, everywhere: bool = False) -> StateDict:
    """Weights without what wrappers add to their names.

    ``_orig_mod.`` and its like go wherever they stand, ``module.`` where all keys begin with it, or ``everywhere``.
    """
    wrappers = _WRAPPERS | {'module'} if everywhere else _WRAPPERS
    renamed = _renamed(state, lambda key: '.'.join(part for part in key.split('.') if part not in wrappers))
    while True:
        deciding = [key for key in renamed if not carries_nothing(key)]
        if not deciding or not all(key.startswith('module.') for key in deciding):
            return renamed
        renamed = _renamed(renamed, lambda key: key.removeprefix('module.'))


def carries_nothing(key: str) -> bool:
    """Whether a tensor is a counter, which neither tells a network nor is needed to run it."""
    return key.rpartition('.')[2] in _COUNTERS or key == 'steps'  # of mmengine's averages


class ArchLike(Protocol):
    """The fields of an architecture that shapes tell."""

    @property
    def embed_dims(self) -> tuple[int, ...]: ...
    @property
    def depths(self) -> tuple[int, ...]: ...
    @property
    def token_mixer(self) -> str: ...


@dataclass(frozen=True)
class Recognized:
    """What is known about a state dict."""

    task: str  # 'backbone', 'classifier', 'detector', 'segmentor' or 'unknown'
    form: str  # 'train', 'keep_norms' (what the authors call fused), 'default' (no norms), 'merged' or 'unknown'
    arch: str | None  # a name of the table, or the dimensions found
    prefix: str  # of the backbone's keys: '', 'backbone.' or longer


def recognize(state: Mapping[str, Tensor], architectures: Mapping[str, ArchLike]) -> Recognized:
    """Read task, form and architecture off a state dict.

    Args:
        state: the weights.
        architectures: the table of known architectures by name.
    """
    prefix = _prefix(state)
    backbone = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    whole = prefix.removesuffix('backbone.')
    below = {key.removeprefix(whole).split('.')[0] for key in state if key.startswith(whole)}
    return Recognized(_task(below), _form(backbone), _arch(backbone, architectures), prefix)


def writer_of(content: Mapping[str, Any]) -> str:
    """Which program wrote a checkpoint, by the entries beside the weights."""
    meta = content.get('meta')
    if isinstance(meta, Mapping):
        meta = plain_dict(meta)
        for name in ('mmengine', 'mmdet', 'mmseg'):
            version = meta.get(f'{name}_version')
            if isinstance(version, str) and version[:40].isprintable():
                return f'{name} {version[:40]}'
        return 'an OpenMMLab project'
    if 'state_dict' in content and {'arch', 'epoch'} <= content.keys():
        return "timm's saver"
    if 'model' in content:
        return "the authors' classification training"
    return 'unknown'


def _content(path: Path, *, trust_pickle: bool) -> Any:
    if trust_pickle and format_of(path) != 'safetensors' and not is_torchscript(path):
        return torch.load(path, map_location='cpu', weights_only=False)
    return read_file(path)


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


def _renamed(state: Mapping[str, Tensor], rename: Callable[[str], str]) -> StateDict:
    renamed = {rename(key): value for key, value in state.items()}
    return renamed if len(renamed) == len(state) else dict(state)  # two of one name: the parts mean something


def _prefix(state: Mapping[str, Tensor]) -> str:
    starts = {key[: found.start()] for key in state if (found := _LAST_OF_BLOCK.search(key))}
    if len(starts) == 1:
        start = starts.pop()
        return f'{start}.' if start else ''
    return 'backbone.' if any(key.startswith('backbone.') for key in state) else ''


def _task(tops: set[str]) -> str:
    if tops & {'roi_head', 'rpn_head', 'bbox_head', 'mask_head'}:
        return 'detector'
    if 'decode_head' in tops:
        return 'segmentor'
    if 'stem' in tops or 'backbone' in tops:
        return 'classifier' if 'head' in tops else 'backbone'
    return 'unknown'


def _form(backbone: Mapping[str, Tensor]) -> str:
    if any(_FORMS['train'].search(key) for key in backbone):
        return 'train'
    if any(_FORMS['merged'].search(key) for key in backbone):
        return 'merged'  # a form for speed alone
    if any(_FORMS['fused'].search(key) for key in backbone):
        return 'keep_norms' if any(key.endswith('norm.running_mean') for key in backbone) else 'default'
    return 'unknown'


def _arch(backbone: Mapping[str, Tensor], architectures: Mapping[str, ArchLike]) -> str | None:
    widths: dict[int, int] = {}
    depths: dict[int, int] = {}
    for key, value in backbone.items():
        found = _LAST_OF_BLOCK.match(key)
        if found and value.dim():
            stage, block = int(found[1]), int(found[2])
            widths[stage] = value.shape[0]
            depths[stage] = max(depths.get(stage, 0), block + 1)
    if not widths:
        return None
    single = any(re.search(r'blocks\.\d+\.token_mixer\.weight$', key) for key in backbone)
    dims, counts = (tuple(values[stage] for stage in sorted(values)) for values in (widths, depths))
    mixer = 'single' if single else 'multi'
    for name, arch in architectures.items():
        if (tuple(arch.embed_dims), tuple(arch.depths), arch.token_mixer) == (dims, counts, mixer):
            return name
    dimensions = f'embed_dims={dims}, depths={counts}'
    return f'{dimensions[:_LONG]}{"..." if len(dimensions) > _LONG else ""}, token_mixer={mixer!r}'
