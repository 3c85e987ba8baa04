"""Checks of a config that cost nothing, made before the work that takes hours."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from repnext_mm.apis.config import innermost_datasets, unwrapped
from repnext_mm.checkpoints import local_file
from repnext_mm.checkpoints.published import similar, weights_of
from repnext_mm.errors import MissingFileError, NotDownloadedError, UserError
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
    """A weight file is on this machine, or comes to it now; addresses and model-zoo names are left to the loader.

    Raises:
        MissingFileError: names the file and who asked for it.
    """
    _check_weights(path, given_as=given_as, way_out='put the file there, or give another path')


def check_initial_weights(model: Mapping[str, Any]) -> None:
    """The file that a model's backbone starts training from is there.

    Raises:
        MissingFileError: with the way to point elsewhere, and the way to train from scratch.
    """
    backbone = unwrapped(model).get('backbone')
    if not isinstance(backbone, dict):
        return
    if isinstance(weights := backbone.get('weights'), str):
        way_out = 'name others with --cfg-options model.backbone.weights=FILE'
        _check_weights(weights_of(backbone.get('arch'), weights), given_as='model.backbone.weights', way_out=way_out)
    init = backbone.get('init_cfg')
    for part in init if isinstance(init, list | tuple) else [init]:
        if not part or type_name(part.get('type')) != 'Pretrained':
            continue
        _check_weights(
            str(part.get('checkpoint')),
            given_as='model.backbone.init_cfg.checkpoint',
            way_out='name another with --cfg-options model.backbone.init_cfg.checkpoint=FILE, or train from scratch '
            'with model.backbone.init_cfg=None',
        )


def check_teacher(model: Mapping[str, Any]) -> None:
    """The weights of a teacher are there, if they are a file.

    Raises:
        MissingFileError: names the file and the way to point elsewhere.
    """
    path = model.get('teacher_checkpoint')
    if path is not None:
        _check_weights(
            path,
            given_as='model.teacher_checkpoint',
            way_out='train or download the teacher first, or name its file with --cfg-options '
            'model.teacher_checkpoint=FILE',
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
    arguments = {key: value for key, value in backbone.items() if key not in ('type', 'init_cfg', 'weights')}
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


def check_class_counts(config: Config, *, stages: tuple[str, ...]) -> None:
    """Model, class folders, CIFAR's files and metrics of ``stages`` ('train', 'val', 'test') agree on the classes.

    What is not a classifier, and data in other formats, are left alone.

    Raises:
        UserError: the first number, or file, that does not fit, and the way out.
    """
    model = unwrapped(config.model)
    head = model.get('head') if isinstance(model.get('head'), dict) else model
    classes = head.get('num_classes')
    if 'train' in stages:
        _check_labels_to_mix(model, classes)
        if head.get('cal_acc'):
            _check_topk('model.head', head, classes)
    for stage in stages:
        loader = config.get(f'{stage}_dataloader')
        if not loader:
            continue
        for dataset in innermost_datasets(loader['dataset']):
            kind = type_name(dataset.get('type'))
            if kind in ('ImageNet', 'CustomDataset'):
                _check_folders(stage, dataset, kind, classes)
            elif kind in ('CIFAR10', 'CIFAR100', 'CIFAR100InBGR') and not dataset.get('download', True):
                _check_cifar(stage, str(dataset.get('data_root') or ''), kind)
        evaluators = config.get(f'{stage}_evaluator') or []
        for evaluator in evaluators if isinstance(evaluators, list | tuple) else [evaluators]:
            if isinstance(evaluator, dict) and type_name(evaluator.get('type')) == 'Accuracy':
                _check_topk(f'{stage}_evaluator', evaluator, classes)


def earlier_files(folder: str | Path, pattern: str = '*') -> str:
    """A few names of what lies in a folder already, for a sentence about what may be replaced; '' if nothing does."""
    names = sorted(path.name for path in Path(folder).glob(pattern)) if Path(folder).is_dir() else []
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def _check_weights(path: str, *, given_as: str, way_out: str) -> None:
    """What stands for a file is on this machine afterwards: hours of work must not end at a download."""
    if '://' in path:
        return
    try:
        local_file(path)
    except NotDownloadedError as error:
        raise NotDownloadedError(f"{given_as} '{path}' is not on this machine: {error}; or {way_out}") from error
    except MissingFileError as error:
        raise MissingFileError(
            f"{given_as} '{path}' does not exist (relative paths start at {os.getcwd()}): {way_out}{similar(path)}"
        ) from error


def _paths(dataset: Any) -> list[str]:
    """What a data set reads, joined to its root as the libraries do: root first, so that the message names it."""
    prefix = dataset.get('data_prefix')
    parts = [dataset.get('ann_file'), *(prefix.values() if isinstance(prefix, dict) else [prefix])]
    names = [part for part in parts if isinstance(part, str) and part]
    root = dataset.get('data_root') or ''
    if not names:
        return [root] if root and dataset.get('download') is False else []
    return [root] * bool(root) + [os.path.join(root, name) for name in names]


def _check_labels_to_mix(model: Any, classes: int | None) -> None:
    """Mixup and CutMix write labels of as many classes as the data preprocessor knows."""
    mixed = (model.get('data_preprocessor') or {}).get('num_classes')
    if None not in (mixed, classes) and mixed != classes and (model.get('train_cfg') or {}).get('augments'):
        raise UserError(
            f'model.data_preprocessor.num_classes={mixed} is not model.head.num_classes={classes}: Mixup and CutMix '
            'need both to be the number of classes in the data'
        )


def _check_topk(name: str, owner: Mapping[str, Any], classes: int | None) -> None:
    topk = owner.get('topk', 1)
    largest = max([topk] if isinstance(topk, int) else topk)
    if classes is not None and largest > classes:
        raise UserError(
            f'{name}.topk={topk} asks for the best {largest} of {classes} classes: keep to what there is, for example '
            f'with --cfg-options {name}.topk=1' + (' test_evaluator.topk=1' if name == 'val_evaluator' else '')
        )


def _check_folders(stage: str, dataset: Mapping[str, Any], kind: str, classes: int | None) -> None:
    """A folder for each class: as many as the data set names, and no more than the model has."""
    split, root = str(dataset.get('split') or ''), str(dataset.get('data_root') or '')
    prefix = dataset.get('data_prefix') or split
    folder = os.path.join(root, prefix.get('img_path', '') if isinstance(prefix, dict) else prefix)
    listed = dataset.get('ann_file') or (kind == 'ImageNet' and os.path.exists(f'{root}/meta/{split}.txt'))
    if listed or split == 'test' or not dataset.get('with_label', True) or not os.path.isdir(folder):
        return
    try:
        with os.scandir(folder) as entries:
            found = sum(entry.is_dir() for entry in entries)
    except OSError as error:
        raise UserError(
            f"{stage} data '{folder}' cannot be listed ({error.strerror}): give read access to it"
        ) from error
    names = dataset.get('classes') or (dataset.get('metainfo') or {}).get('classes')
    named = len(names) if isinstance(names, list | tuple) else 1000 if kind == 'ImageNet' and names is None else None
    if named is not None and found != named:
        raise UserError(
            f"{stage} data '{folder}' have {found} class folders, and {kind} is to have {named} classes: name another "
            'folder with --cfg-options data_root=FOLDER, or let tools/new_config.py write a config for classes of '
            'your own'
        )
    if classes is not None and found > classes:
        raise UserError(
            f"{stage} data '{folder}' have {found} class folders, and the model has {classes} classes: set "
            f'model.head.num_classes={found} and model.data_preprocessor.num_classes={found}, or give another folder'
        )


def _check_cifar(stage: str, root: str, kind: str) -> None:
    """Its published files, which are pickles: MMPretrain unpickles no others."""
    from mmpretrain import datasets

    published = datasets.CIFAR10 if kind == 'CIFAR10' else datasets.CIFAR100
    for name, md5 in (*published.train_list, *published.test_list):
        path = os.path.join(root, published.base_folder, name)
        way_out = f'unpack {published.url} there, or name its folder with --cfg-options data_root=FOLDER'
        if not os.path.isfile(path):
            raise UserError(f"{stage} data '{path}' do not exist: {way_out}")
        if md5 is not None and (found := _md5(path)) != md5:
            raise UserError(f"{stage} data '{path}' are not the published ones (MD5 {found}, not {md5}): {way_out}")


def _md5(path: str) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, 'rb') as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
