"""Reading a config file with a user's overrides."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config

from repnext_mm.apis.config_shape import check_shape
from repnext_mm.errors import MissingFileError, UserError
from repnext_mm.models import type_name

SCOPE_PACKAGES = ('mmdet', 'mmseg', 'mmpretrain')
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


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
    check_shape(config._cfg_dict, path=str(path))
    if not config.get('default_scope'):
        config.default_scope = _scope_of(config.get('model') or {})
    for loader in LOADERS:  # torch refuses persistent workers where there are none
        if config.get(loader) and config[loader].get('num_workers') == 0:
            config[loader]['persistent_workers'] = False
    _check_scope(config)
    config.work_dir = work_dir or config.get('work_dir') or os.path.join('work_dirs', path.stem)
    return config


@contextmanager
def building(config: Config) -> Iterator[None]:
    """Say in one sentence what is wrong with a config from which a library cannot build something.

    Raises:
        UserError: in the library's words, whatever it raised.
    """
    try:
        yield
    except UserError:
        raise
    except (OSError, TypeError, ValueError) as error:  # with a sentence of their own
        raise UserError(' '.join(str(error).split())) from error
    except Exception as error:  # registries pass on whatever a constructor raises
        reason = ' '.join(str(error).split())[:300]
        raise UserError(
            f"config '{config.filename}' cannot be built ({type(error).__name__}: {reason}): fix that part of it"
        ) from error


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
