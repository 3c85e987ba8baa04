"""The parts of a config that are read before anything is built have the types that the readers expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from repnext_mm.errors import UserError


class _Rule(NamedTuple):
    keys: tuple[str, ...]
    kinds: tuple[type, ...]  # None is always allowed: it stands for "not there"
    words: str


_STAGES = ('train', 'val', 'test')
_RULES = (
    _Rule(('model', 'tta_model'), (dict,), 'a dict with a `type`'),
    _Rule(
        (*(f'{stage}_cfg' for stage in _STAGES), 'optim_wrapper', 'default_hooks', 'visualizer', 'auto_scale_lr'),
        (dict,),
        'a dict',
    ),
    _Rule(tuple(f'{stage}_dataloader' for stage in _STAGES), (dict,), 'a dict with a `dataset`'),
    _Rule(tuple(f'{stage}_evaluator' for stage in _STAGES), (dict, list, tuple), 'a dict, or a list of them'),
    _Rule(('custom_hooks', 'tta_pipeline'), (list, tuple), 'a list of dicts with a `type` each'),
    _Rule(('param_scheduler',), (dict, list, tuple), 'a dict, or a list of them'),
    _Rule(('default_scope', 'work_dir', 'load_from'), (str,), 'a string'),
    _Rule(('resume',), (bool,), 'True or False'),
)


def check_shape(config: Mapping[str, Any], *, path: str) -> None:
    """Refuse a config whose parts are of another type than they must be.

    Args:
        config: the whole config.
        path: what it is called in errors.

    Raises:
        UserError: the key, its value, and what it must be.
    """

    def refuse(key: str, value: Any, words: str) -> None:
        shown = repr(value)
        shown = shown if len(shown) < 80 else f'{shown[:76]} ...'
        raise UserError(f"config '{path}' has {key}={shown}, which must be {words}: fix it there")

    for keys, kinds, words in _RULES:
        for key in keys:
            value = config.get(key)
            if value is not None and not isinstance(value, kinds):
                refuse(key, value, words)
            for index, part in enumerate(value if isinstance(value, list | tuple) else ()):
                if not isinstance(part, Mapping) or ('`type`' in words and 'type' not in part):
                    refuse(f'{key}[{index}]', part, 'a dict with a `type`')
            if words.startswith('a dict with a `type`') and value and 'type' not in value:
                refuse(key, dict(value), words)
    for name, hook in (config.get('default_hooks') or {}).items():
        if hook is not None and not isinstance(hook, Mapping):
            refuse(f'default_hooks.{name}', hook, 'a dict, or None')
    for stage in _STAGES:
        loader = config.get(f'{stage}_dataloader')
        if not loader:
            continue
        workers = loader.get('num_workers', 0)
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
            refuse(f'{stage}_dataloader.num_workers', workers, 'a number of processes, 0 or more')
        for key, part in _datasets(f'{stage}_dataloader.dataset', loader.get('dataset')):
            if not isinstance(part, Mapping):
                refuse(key, part, 'a dict that names a data set')
    for key, part in _model_parts(config.get('model') or {}):
        if not isinstance(part, Mapping):
            refuse(key, part, 'a dict')


def _datasets(key: str, dataset: Any) -> list[tuple[str, Any]]:
    """A data set and those inside it, under their keys in the config."""
    found = [(key, dataset)]
    if isinstance(dataset, Mapping):
        if 'dataset' in dataset:
            found += _datasets(f'{key}.dataset', dataset['dataset'])
        elif 'datasets' in dataset:
            parts = dataset['datasets']
            if not isinstance(parts, list | tuple):
                return [*found, (f'{key}.datasets', parts)]
            for index, part in enumerate(parts):
                found += _datasets(f'{key}.datasets[{index}]', part)
    return found


def _model_parts(model: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The parts of a model that checks look into, under their keys in the config."""
    return [
        (f'model.{key}', model[key])
        for key in ('backbone', 'data_preprocessor', 'student', 'module')
        if model.get(key) is not None
    ]
