"""Checks of a config that cost nothing, made before the work that takes hours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config

from repnext_mm.apis.config import innermost_datasets
from repnext_mm.errors import MissingFileError, UserError
from repnext_mm.models import RepNeXt, type_name


def check_files(config: Config, *, stages: tuple[str, ...]) -> None:
    """The files that the data sets and evaluators of ``stages`` ('train', 'val', 'test') name are there.

    A data set that names no files (one that makes its own) is left alone.

    Raises:
        MissingFileError: names the first one that is missing and how to point the config elsewhere.
    """
    for stage in stages:
        loader = config.get(f'{stage}_dataloader')
        if not loader:
            continue
        named = [path for dataset in innermost_datasets(loader['dataset']) for path in _paths(dataset)]
        evaluators = config.get(f'{stage}_evaluator') or []
        if named:
            named += [
                evaluator['ann_file']
                for evaluator in (evaluators if isinstance(evaluators, list | tuple) else [evaluators])
                if isinstance(evaluator.get('ann_file'), str)
            ]
        for path in named:
            if '://' not in path and not os.path.exists(path):
                raise MissingFileError(
                    f"{stage} data '{path}' does not exist (relative paths start at {os.getcwd()}): put the data set "
                    'there, or name its folder with --cfg-options data_root=FOLDER'
                )


def check_checkpoint(path: str, *, given_as: str) -> None:
    """A weight file that is on this machine by name is there; URLs and model-zoo names are left to the loader.

    Raises:
        MissingFileError: names the file and who asked for it.
    """
    if '://' not in path and not os.path.isfile(path):
        raise MissingFileError(
            f"{given_as} '{path}' does not exist (relative paths start at {os.getcwd()}): put the file there, or give "
            'another path'
        )


def check_initial_weights(model: Mapping[str, Any]) -> None:
    """The file that a model's backbone starts training from is there.

    Raises:
        MissingFileError: with the way to point elsewhere, and the way to train from scratch.
    """
    backbone = unwrapped(model).get('backbone')
    init = backbone.get('init_cfg') if isinstance(backbone, dict) else None
    for part in init if isinstance(init, list | tuple) else [init]:
        if not part or type_name(part.get('type')) != 'Pretrained':
            continue
        path = str(part.get('checkpoint'))
        if '://' not in path and not os.path.isfile(path):
            raise MissingFileError(
                f"model.backbone.init_cfg.checkpoint '{path}' does not exist (relative paths start at {os.getcwd()}): "
                "put the authors' file there, name another with --cfg-options "
                'model.backbone.init_cfg.checkpoint=FILE, or train from scratch with model.backbone.init_cfg=None'
            )


def check_teacher(model: Mapping[str, Any]) -> None:
    """The weights of a teacher are there, if they are a file.

    Raises:
        MissingFileError: names the file and the way to point elsewhere.
    """
    path = model.get('teacher_checkpoint')
    if path is not None and '://' not in path and not os.path.isfile(path):
        raise MissingFileError(
            f"model.teacher_checkpoint '{path}' does not exist (relative paths start at {os.getcwd()}): train or fetch "
            'the teacher first, or name its file with --cfg-options model.teacher_checkpoint=FILE'
        )


def check_model(model: Mapping[str, Any]) -> None:
    """A RepNeXt backbone can be built, and the neck takes its channels; other backbones are left alone.

    Raises:
        UserError: what the backbone's constructor says, or the two lists of channels.
    """
    model = unwrapped(model)
    backbone = model.get('backbone')
    if not isinstance(backbone, dict) or type_name(backbone.get('type')) != 'RepNeXt':
        return
    arguments = {key: value for key, value in backbone.items() if key not in ('type', 'init_cfg')}
    try:
        with torch.device('meta'):  # shapes only: no memory, no time
            channels = list(RepNeXt(**arguments).out_channels)
    except (TypeError, ValueError) as error:  # of arguments that it does not know, or not with this value
        raise UserError(f'model.backbone: {error}') from error
    neck = model.get('neck')
    wanted = neck.get('in_channels') if isinstance(neck, dict) else None
    if wanted is not None and (list(wanted) if isinstance(wanted, list | tuple) else [wanted]) != channels:
        raise UserError(
            f'model.neck.in_channels={wanted} does not match the channels {channels} of RepNeXt '
            f'arch={backbone.get("arch", "m4")!r} at its out_indices: set model.neck.in_channels={channels}'
        )


def unwrapped(model: Mapping[str, Any]) -> Any:
    """The model's own config inside wrappers: for test-time augmentation (`module`), for distillation (`student`)."""
    while inner := next((model[key] for key in ('module', 'student') if isinstance(model.get(key), dict)), None):
        model = inner
    return model


def _paths(dataset: Any) -> list[str]:
    """What a data set reads, joined to its root as the libraries do: root first, so that the message names it."""
    prefix = dataset.get('data_prefix')
    parts = [dataset.get('ann_file'), *(prefix.values() if isinstance(prefix, dict) else [prefix])]
    names = [part for part in parts if isinstance(part, str) and part]
    root = dataset.get('data_root') or ''
    if not names:
        return [root] if root and dataset.get('download') is False else []
    return [root] * bool(root) + [os.path.join(root, name) for name in names]
