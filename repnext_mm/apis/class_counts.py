"""Checks that the numbers of classes agree, and of CIFAR's files, before a data set or a metric trips over them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from repnext_mm.apis.checks import unwrapped
from repnext_mm.apis.config import innermost_datasets
from repnext_mm.errors import UserError
from repnext_mm.models import type_name


def check_class_counts(config: Config, *, stages: tuple[str, ...]) -> None:
    """Model, class folders, CIFAR's files and metrics of ``stages`` ('train', 'val', 'test') agree on the classes.

    What is no classifier, and data in other formats, are left alone.

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
    with os.scandir(folder) as entries:
        found = sum(entry.is_dir() for entry in entries)
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
