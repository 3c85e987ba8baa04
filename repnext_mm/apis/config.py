"""Reading a config file with a user's overrides, and what its parts mean."""

from __future__ import annotations

import importlib.util
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from repnext_mm.checkpoints.read import plain_dict
from repnext_mm.errors import MissingFileError, UserError
from repnext_mm.models import type_name
from repnext_mm.models.registry import log

SCOPE_PACKAGES = ('mmdet', 'mmseg', 'mmpretrain')
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


class NotBuiltError(UserError):
    """A config from which something cannot be built, in one sentence."""


def load_config(path: str | Path, *, options: Mapping[str, Any] | None = None, work_dir: str | None = None) -> Config:
    """Read a config, apply dotted overrides and choose its working directory.

    ``options`` are those of ``--cfg-options``. A new value of the top-level ``data_root`` reaches every path that
    starts with the old one: datasets and annotation files of evaluators.

    Raises:
        MissingFileError: there is no such file.
        UserError: the file, an override, a part of the config or the scope's package cannot be used.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise MissingFileError(f"config '{path}' does not exist: give a path relative to {os.getcwd()}, or absolute")
    try:
        config = Config.fromfile(str(path))
    except Exception as error:  # a config is a program: anything can go wrong in it
        raise UserError(f"config '{path}' cannot be read ({type(error).__name__}: {error}): fix the file") from error
    options = dict(options or {})
    if 'data_root' in options:
        _move_root(config, str(options.pop('data_root')))
    try:
        config.merge_from_dict(options)
    except Exception as error:
        raise UserError(
            f"--cfg-options {options} do not fit config '{path}' ({error}): name keys as in the file, joined by dots"
        ) from error
    _check_shape(config._cfg_dict, path=str(path))
    if not config.get('default_scope'):
        config.default_scope = _scope_of(config.get('model') or {})
    _without_absent_workers(config)
    _check_scope(config)
    config.work_dir = work_dir or config.get('work_dir') or os.path.join('work_dirs', path.stem)
    return config


def _without_absent_workers(config: Config) -> None:
    """Keep no workers between epochs where there are none, which torch refuses."""
    loaders = [config[name] for name in LOADERS if config.get(name)]
    changed = [loader for loader in loaders if loader.get('num_workers') == 0 and loader.get('persistent_workers')]
    for loader in changed:
        loader['persistent_workers'] = False
    if changed:
        log('persistent_workers is set to False where num_workers is 0: there are no workers to keep')


@contextmanager
def building(config: Config) -> Iterator[None]:
    """Say in one sentence what is wrong with a config from which a library cannot build something.

    Raises:
        NotBuiltError: in the library's words, whatever it raised; or that a library cannot be imported here.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # registries pass on whatever a constructor raises
        said, kind = ' '.join(str(error).split()), type(error).__name__
        if library := _not_importable(error):
            said = f'{library} cannot be imported here ({kind}: {said[:300]}): repnext check env says how to fix it'
        elif not isinstance(error, OSError | TypeError | ValueError):  # those have a sentence of their own
            said = f"config '{config.filename}' cannot be built ({kind}: {said[:300]}): fix that part of it"
        raise NotBuiltError(said) from error


def _not_importable(error: BaseException) -> str | None:
    """The library whose import raised an error, if one did: registries import all of a library's models at once."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == '<module>']
    names = {str(frame.f_globals.get('__name__')).partition('.')[0] for frame in frames}
    return next((name for name in ('mmcv', 'mmpretrain', *SCOPE_PACKAGES) if name in names), None)


def innermost_datasets(dataset: Mapping[str, Any]) -> Iterator[Any]:
    """The data sets inside wrappers such as RepeatDataset (`dataset`) and ConcatDataset (`datasets`)."""
    if 'dataset' in dataset:
        yield from innermost_datasets(dataset['dataset'])
    elif 'datasets' in dataset:
        for part in dataset['datasets']:
            yield from innermost_datasets(part)
    else:
        yield dataset


def without_teacher(model: Any) -> Any:
    """What is tested of a model's config: the student of a `DistilledClassifier`; any other model as it is."""
    return without_teacher(model['student']) if type_name(model.get('type')) == 'DistilledClassifier' else model


def replace_type(node: Any, replacements: Mapping[str, str]) -> int:
    """Replace, in place, each `type` in a nested config by the name of it; returns how many it replaced."""
    renamed = 0
    if isinstance(node, dict):
        new = replacements.get(type_name(node['type'])) if 'type' in node else None
        if new is not None:
            node['type'] = new
            renamed += 1
        renamed += sum(replace_type(value, replacements) for value in node.values())
    elif isinstance(node, list | tuple):
        renamed += sum(replace_type(value, replacements) for value in node)
    return renamed


def unwrapped(model: Mapping[str, Any]) -> Any:
    """The model's own config inside wrappers: for test-time augmentation (`module`), for distillation (`student`)."""
    while inner := next((model[key] for key in ('module', 'student') if isinstance(model.get(key), dict)), None):
        model = inner
    return model


def drop_initial_weights(model: Any) -> None:
    """Forget, in place, the file a backbone starts training from: the tested checkpoint holds all weights."""
    model = unwrapped(model)
    model.pop('pretrained', None)
    if isinstance(model.get('backbone'), dict):
        model['backbone'].pop('init_cfg', None)
        model['backbone'].pop('weights', None)


def classes_in_checkpoint(content: Mapping[str, Any]) -> dict[str, Any]:
    """``classes``, and perhaps ``palette``, that mmengine or the mm packages before it wrote; empty if they did not."""
    meta = content.get('meta')
    if not isinstance(meta, Mapping):
        return {}
    meta = plain_dict(meta)
    known = meta.get('dataset_meta')
    if isinstance(known, Mapping):
        known = plain_dict(known)
    else:
        known = {name.lower(): meta[name] for name in ('CLASSES', 'PALETTE') if name in meta}
    return dict(known) if isinstance(known.get('classes'), list | tuple) else {}


def classes_of_config(config: Config) -> dict[str, Any]:
    """``classes``, perhaps ``palette``, and what else the config's test data set knows; its files are not read."""
    init_default_scope(config.default_scope)
    dataset = next(innermost_datasets(config.test_dataloader['dataset']))
    with building(config):
        return dict(DATASETS.build({**dataset, 'lazy_init': True}).metainfo)


def _move_root(config: Config, new: str) -> None:
    """Give every path that starts with the config's `data_root` a new start."""
    old = str(config.get('data_root') or '').rstrip('/')
    if not old:
        raise UserError(
            f"data_root='{new}' has nothing to replace: config '{config.filename}' has no top-level data_root, set "
            'train_dataloader.dataset.data_root and its like'
        )

    def moved(node: Any) -> Any:
        if isinstance(node, dict):
            for key in node:
                node[key] = moved(node[key])
        elif isinstance(node, list):
            node[:] = [moved(value) for value in node]
        elif isinstance(node, str) and (node.rstrip('/') == old or node.startswith(old + '/')):
            return os.path.join(new, node[len(old) :].lstrip('/'))
        return node

    moved(config._cfg_dict)


def _scope_of(model: Mapping[str, Any]) -> str | None:
    """The package that a model's class is from: configs of classes name no scope, but names added to them need it."""
    kind = model.get('type')
    package = (kind if isinstance(kind, str) else str(getattr(kind, '__module__', ''))).partition('.')[0]
    if package in SCOPE_PACKAGES:
        return package
    inner = (model.get(key) for key in ('module', 'student'))
    return next((_scope_of(part) for part in inner if isinstance(part, Mapping)), None)


def _check_scope(config: Config) -> None:
    scope = config.get('default_scope')
    if scope in SCOPE_PACKAGES and importlib.util.find_spec(scope) is None:
        raise UserError(
            f"default_scope='{scope}' needs the package {scope}, which is not installed: run tools/check_env.py, "
            'it prints the command that installs it'
        )


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


def _check_shape(config: Mapping[str, Any], *, path: str) -> None:
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
