"""Whether a checkpoint holds a training that a run can go on with: checked before any of it is taken over."""

from __future__ import annotations

import copy
import logging
import numbers
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.hooks import EMAHook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn

from repnext_mm.checkpoints import WeightsError

_HUB = ('log_scalars', 'runtime_info', 'resumed_keys')
# Options of a parameter group that torch adds where an older file lacks them.
_OPTIONAL = {
    'foreach',
    'maximize',
    'capturable',
    'differentiable',
    'fused',
    'decoupled_weight_decay',
    'nesterov',
    'amsgrad',
    'initial_lr',
    'param_names',
}
_PROBE = (2, 3)  # no optimizer keeps this shape but as that of the parameter


def check_resumable(checkpoint: Mapping[str, Any], runner: Any, model: nn.Module, *, source: str) -> None:
    """Refuse a training that mmengine would go on with in a traceback, or wrongly.

    Args:
        checkpoint: the file.
        runner: mmengine's, with its optimizer and schedulers built.
        model: the bare model.
        source: what the file is called in errors.

    Raises:
        WeightsError: names the file and its first entry that cannot be.
    """
    meta = checkpoint.get('meta')
    there = {'meta': meta if isinstance(meta, Mapping) else {}, '': checkpoint}
    lacking = [
        name
        for name in ('meta.epoch', 'meta.iter', 'message_hub')
        if name.rpartition('.')[2] not in there[name.rpartition('.')[0]]
    ]
    if lacking:
        raise WeightsError(
            f'{source} holds no training of mmengine to go on from (--resume), it lacks {" and ".join(lacking)}: '
            'start from its weights, with --cfg-options load_from=FILE'
        )
    fault = next(_faults(checkpoint, runner, model), None)
    if fault is not None:
        raise WeightsError(
            f'{source} cannot be gone on with (--resume): {fault}; take another checkpoint, or start from its weights, '
            'with --cfg-options load_from=FILE'
        )
    if 'optimizer' not in checkpoint and isinstance(getattr(runner, 'optim_wrapper', None), OptimWrapper):
        print_log(f'{source} holds no state of an optimizer: it starts from scratch', 'current', logging.WARNING)


def _faults(checkpoint: Mapping[str, Any], runner: Any, model: nn.Module) -> Iterator[str]:
    yield from _of_meta(checkpoint['meta'])
    yield from _of_hub(checkpoint['message_hub'])
    wrapper = getattr(runner, 'optim_wrapper', None)
    if 'optimizer' in checkpoint and isinstance(wrapper, OptimWrapperDict):
        found = checkpoint['optimizer']
        if not isinstance(found, Mapping) or set(found) != set(wrapper.keys()):
            yield f'optimizer must hold the optimizers {", ".join(wrapper.keys())} of this config'
            return
        for name, part in wrapper.items():
            yield from _of_optimizer(found[name], part, f'optimizer.{name}')
    elif 'optimizer' in checkpoint and isinstance(wrapper, OptimWrapper):
        yield from _of_optimizer(checkpoint['optimizer'], wrapper, 'optimizer')
    if 'param_schedulers' in checkpoint and getattr(runner, 'param_schedulers', None) is not None:
        yield from _of_schedulers(checkpoint['param_schedulers'], runner.param_schedulers, 'param_schedulers')
    if 'ema_state_dict' in checkpoint and any(isinstance(hook, EMAHook) for hook in runner.hooks):
        yield from _of_average(checkpoint['ema_state_dict'], checkpoint.get('state_dict'), model)


def _of_meta(meta: Mapping[str, Any]) -> Iterator[str]:
    for name in ('epoch', 'iter'):
        value = meta[name]
        if not _is_count(value):
            yield f'meta.{name} is {_shown(value)}, not a number of steps'
    seed = meta.get('seed')
    if seed is not None and not (_is_count(seed) and seed < 2**32):
        yield f'meta.seed is {_shown(seed)}, not a seed from 0 to 2^32 - 1'


def _of_hub(hub: Any) -> Iterator[str]:
    if not isinstance(hub, Mapping):
        yield f'message_hub is {_shown(hub)}, not a dict'
        return
    for name in _HUB:
        if not isinstance(hub.get(name), Mapping):
            yield f'message_hub.{name} is {_shown(hub.get(name))}, not a dict'
            return
        if not all(isinstance(key, str) for key in hub[name]):
            yield f'message_hub.{name} has names that are not text'
    for name, value in hub['log_scalars'].items():
        if isinstance(value, HistoryBuffer) and not _is_history(value):  # others are passed over by mmengine
            yield f'message_hub.log_scalars.{name} is not a history of numbers'
    for name, value in hub['resumed_keys'].items():
        if not isinstance(value, bool):
            yield f'message_hub.resumed_keys.{name} is {_shown(value)}, not True or False'
    for name, value in hub['runtime_info'].items():
        is_list = isinstance(value, list | tuple) or (value is None and name == 'outdated_best_ckpts')
        if name in ('keep_ckpt_ids', 'outdated_best_ckpts') and not is_list:
            yield f'message_hub.runtime_info.{name} is {_shown(value)}, not a list'
        if (name.startswith('best_score') or name == 'last_validation') and not _is_number(value):
            yield f'message_hub.runtime_info.{name} is {_shown(value)}, not a number'


def _of_optimizer(found: Any, wrapper: OptimWrapper, name: str) -> Iterator[str]:
    groups = wrapper.optimizer.param_groups
    if not isinstance(found, Mapping):
        yield f'{name} is {_shown(found)}, not a dict'
        return
    saved, states = found.get('param_groups'), found.get('state')
    if not isinstance(saved, list) or len(saved) != len(groups) or not isinstance(states, Mapping):
        yield f'{name} must hold a dict `state` and a list `param_groups` of {len(groups)} groups, as this config has'
        return
    for index, (group, own) in enumerate(zip(saved, groups, strict=True)):
        place = f'{name}.param_groups.{index}'
        if not isinstance(group, Mapping) or not isinstance(group.get('params'), list):
            yield f'{place} must be a dict with a list `params`'
            return
        if len(group['params']) != len(own['params']) or not all(map(_is_count, group['params'])):
            yield f'{place}.params must number the {len(own["params"])} parameters of this config'
            return
        options = {key: value for key, value in group.items() if key != 'params'}
        needed = {k: v for k, v in own.items() if k != 'params' and (k in options or k not in _OPTIONAL)}
        yield from _unlike(options, needed, place)
        expected = _first_state(wrapper.optimizer, {**own, **options})
        if expected is None and _first_state(wrapper.optimizer, own) is not None:
            yield f'{place} holds options with which {type(wrapper.optimizer).__name__} takes no step'
            return
        for number, parameter in zip(group['params'], own['params'], strict=True):
            yield from _of_parameter(states.get(number, {}), expected or {}, parameter, f'{name}.state.{number}')
    numbers_known = {number for group in saved for number in group['params']}
    strange = [key for key in states if key not in numbers_known]
    if strange:
        yield f'{name}.state.{_shown(strange[0])} belongs to none of the parameters'
    settings = wrapper.state_dict()
    for key in ('base_param_settings', 'loss_scaler'):
        if key in found and isinstance(settings.get(key), Mapping):
            yield from _unlike(found[key], settings[key], f'{name}.{key}')


def _of_parameter(found: Any, expected: Mapping[str, Any], parameter: Tensor, name: str) -> Iterator[str]:
    if not isinstance(found, Mapping):
        yield f'{name} is {_shown(found)}, not a dict'
        return
    if not found:
        return  # never updated
    for key, value in expected.items():
        shape = value.shape if isinstance(value, Tensor) else None
        if value is None:
            continue
        if shape is None or not shape:
            if not _is_number(found.get(key)) or (key == 'step' and not found[key] >= 0):
                yield f'{name}.{key} is {_shown(found.get(key))}, not a number of its kind'
        elif not isinstance(found.get(key), Tensor):
            yield f'{name}.{key} is {_shown(found.get(key))}, not a tensor'
        elif found[key].is_complex() != value.is_complex():
            yield f'{name}.{key} is {found[key].dtype}, its parameter {parameter.dtype}'
        elif tuple(shape) == _PROBE and found[key].shape != parameter.shape:
            yield f'{name}.{key} has shape {tuple(found[key].shape)}, its parameter {tuple(parameter.shape)}'


def _first_state(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an optimizer keeps of a parameter of shape ``_PROBE`` after a step; None where it takes none."""
    like = group['params'][0]
    probe = torch.zeros(_PROBE, device=like.device, dtype=like.dtype, requires_grad=True)
    probe.grad = torch.zeros_like(probe)
    twin = copy.copy(optimizer)
    twin.state = defaultdict(dict)
    twin.param_groups = [{**group, 'params': [probe]}]
    try:
        twin.step()
    except Exception:  # options that cannot be, or an optimizer of a kind that steps otherwise
        return None
    return dict(twin.state[probe])


def _of_schedulers(found: Any, own: Any, name: str) -> Iterator[str]:
    if isinstance(own, Mapping):
        if not isinstance(found, Mapping) or set(found) != set(own):
            yield f'{name} must hold the schedulers of {", ".join(own)}, as this config has'
            return
        for key, part in own.items():
            yield from _of_schedulers(found[key], part, f'{name}.{key}')
        return
    if not isinstance(found, list | tuple) or len(found) != len(own):
        yield f'{name} must be a list of the states of {len(own)} schedulers, as this config has'
        return
    for index, (state, scheduler) in enumerate(zip(found, own, strict=True)):
        place = f'{name}.{index}'
        yield from _unlike(state, scheduler.state_dict(), place)
        methods = [key for key in state if not isinstance(key, str) or hasattr(type(scheduler), key)]
        if methods:  # they would take the place of the scheduler's own
            yield f'{place} holds {_shown(methods[0])}, which is not the state of a {type(scheduler).__name__}'


def _of_average(found: Any, state: Any, model: nn.Module) -> Iterator[str]:
    if not isinstance(found, Mapping) or not isinstance(state, Mapping):
        yield f'ema_state_dict is {_shown(found)}, not a dict beside state_dict'
        return
    own = model.state_dict()
    for key, value in found.items():
        name = str(key).removeprefix('module.')
        if not isinstance(key, str) or not isinstance(value, Tensor):
            yield f'ema_state_dict.{str(key)[:100]} is {_shown(value)}, not a tensor'
        elif name != key and (name not in state or name not in own or not _like(value, own[name])):
            yield f'ema_state_dict.{key[:100]} is not a tensor of this model in its shape'
        elif key == 'steps' and (value.dim() or not _is_number(value)):
            yield f'ema_state_dict.steps is {_shown(value)}, not a number'


def _like(value: Tensor, own: Tensor) -> bool:
    return value.shape == own.shape and value.is_complex() == own.is_complex()


def _unlike(found: Any, own: Any, name: str) -> Iterator[str]:
    """Where a state is not of the kind of a run's own."""
    if isinstance(own, Mapping):
        if not isinstance(found, Mapping):
            yield f'{name} is {_shown(found)}, not a dict'
            return
        if all(isinstance(key, str) for key in own):
            for key, value in own.items():
                if key not in found:
                    yield f'{name} lacks {key}'
                else:
                    yield from _unlike(found[key], value, f'{name}.{key}')
        elif not all(map(_is_number, [*found.keys(), *found.values()])):  # a count per step
            yield f'{name} must hold numbers only'
    elif isinstance(own, bool):
        if not isinstance(found, bool):
            yield f'{name} is {_shown(found)}, not True or False'
    elif _is_number(own):
        if not _is_number(found) or isinstance(found, bool):
            yield f'{name} is {_shown(found)}, not a number'
    elif own is None:
        if isinstance(found, Tensor | np.ndarray) and not _is_number(found):
            yield f'{name} is {_shown(found)}, not a plain value'
    elif isinstance(own, str):
        if found != own:
            yield f'{name} is {_shown(found)}, in this config {own!r}'
    elif isinstance(own, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(own):
            yield f'{name} is {_shown(found)}, not a list of {len(own)}'
        else:
            for index, (part, value) in enumerate(zip(found, own, strict=True)):
                yield from _unlike(part, value, f'{name}.{index}')


def _is_history(buffer: HistoryBuffer) -> bool:
    held = vars(buffer)
    history, counts = held.get('_log_history'), held.get('_count_history')
    return (
        held.keys() <= {'_log_history', '_count_history', 'max_length', 'statistics_methods'}  # no method is replaced
        and isinstance(history, np.ndarray)
        and isinstance(counts, np.ndarray)
        and history.ndim == 1
        and history.shape == counts.shape
        and history.dtype.kind in 'fiu'
        and counts.dtype.kind in 'fiu'
        and _is_count(held.get('max_length'))
        and isinstance(held.get('statistics_methods', {}), Mapping)
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= int(value) < 2**63


def _is_number(value: Any) -> bool:
    """A number, also one in an array or a tensor."""
    if isinstance(value, Tensor | np.ndarray):
        return value.size == 1 if isinstance(value, np.ndarray) else value.numel() == 1 and not value.is_complex()
    return isinstance(value, numbers.Real)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        return f'a {type(value).__name__} of {len(value)}'
    if isinstance(value, Tensor):
        return f'a tensor of shape {tuple(value.shape)}'
    return ascii(value)[:50] if isinstance(value, str | int | float | type(None)) else f'a {type(value).__name__}'
