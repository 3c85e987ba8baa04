"""Numbers of classes that do not agree, and CIFAR's files, are refused before the run in one sentence."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from mmengine.config import Config

from repnext_mm.apis import prepare_test, prepare_training
from repnext_mm.apis.checks import check_class_counts
from tests.configs import CONFIGS

pytest.importorskip('mmpretrain')

IMAGENET = CONFIGS / 'repnext_m0_imagenet.py'
CIFAR = CONFIGS / 'repnext_m0_cifar100.py'
STAGES = ('train', 'val', 'test')


def folders(root, count):
    for split in ('train', 'val'):
        for label in range(count):
            (root / split / f'class{label:04d}').mkdir(parents=True)
    return root


def few(root, classes, *, folder_count=None, **changes):
    """The M0 recipe, fine-tuned on few classes."""
    folders(root, classes if folder_count is None else folder_count)
    config = Config.fromfile(IMAGENET)
    for split, stage in (('train', 'train'), ('val', 'val'), ('val', 'test')):
        loader = config[f'{stage}_dataloader']
        loader.dataset = dict(type='CustomDataset', data_root=str(root), data_prefix=split, pipeline=[])
    options = {'model.head.num_classes': classes, 'model.data_preprocessor.num_classes': classes}
    config.merge_from_dict({**options, **changes})
    return config


def test_five_classes_have_a_top_five(tmp_path):
    check_class_counts(few(tmp_path, 5), stages=STAGES)


@pytest.mark.parametrize('classes', [1, 4])
@pytest.mark.parametrize('stage', ['val', 'test'])
def test_fewer_than_five_have_none(tmp_path, classes, stage):
    config = few(tmp_path, classes)
    options = f'{stage}_evaluator.topk=1'
    with pytest.raises(ValueError, match=rf'{stage}_evaluator.topk=.* best 5 of {classes} .*--cfg-options {options}'):
        check_class_counts(config, stages=(stage,))
    config.merge_from_dict({'val_evaluator.topk': 1, 'test_evaluator.topk': 1})
    check_class_counts(config, stages=STAGES)


@pytest.mark.parametrize(
    'form',
    [
        lambda topk: [dict(type='Accuracy', topk=topk)],
        lambda topk: dict(type='mmpretrain.Accuracy', topk=topk),
    ],
    ids=['list', 'scoped'],
)
def test_however_the_metric_is_written(tmp_path, form):
    config = few(tmp_path, 3)
    config.val_evaluator = form((1, 5))
    with pytest.raises(ValueError, match='asks for the best 5 of 3 classes'):
        check_class_counts(config, stages=('val',))


def test_accuracies_of_training(tmp_path):
    config = few(tmp_path, 3, **{'model.head.cal_acc': True, 'val_evaluator.topk': 1})
    with pytest.raises(ValueError, match=r'model\.head\.topk=.*best 5 of 3'):
        check_class_counts(config, stages=('train', 'val'))


def test_a_student_counts(tmp_path):
    config = few(tmp_path, 3)
    config.model = dict(type='DistilledClassifier', student=config.model, teacher={})
    with pytest.raises(ValueError, match='best 5 of 3'):
        check_class_counts(config, stages=('val',))


def test_classes_of_a_timm_model(tmp_path):
    config = few(tmp_path, 5, folder_count=8)
    config.model = dict(type='TimmClassifier', model_name='any', num_classes=3)
    config.val_evaluator.topk = config.test_evaluator.topk = (1,)
    with pytest.raises(ValueError, match='8 class folders, and the model has 3 classes'):
        check_class_counts(config, stages=STAGES)


def test_labels_to_mix(tmp_path):
    config = few(tmp_path, 6, **{'model.data_preprocessor.num_classes': 1000})
    with pytest.raises(ValueError, match='data_preprocessor.num_classes=1000 is not model.head.num_classes=6'):
        check_class_counts(config, stages=('train',))
    check_class_counts(config, stages=('val', 'test'))
    config.model.train_cfg = None
    check_class_counts(config, stages=STAGES)


@pytest.mark.parametrize('stage', STAGES)
def test_more_folders_than_classes(tmp_path, stage):
    with pytest.raises(ValueError, match=rf'{stage} data .* 9 class folders.* 7 classes: set model.head.num_classes=9'):
        check_class_counts(few(tmp_path, 7, folder_count=9), stages=(stage,))


@pytest.mark.parametrize('count', [10, 1001])
def test_imagenet_with_other_classes(tmp_path, count):
    options = {'data_root': str(folders(tmp_path, count))}
    words = rf'data .* have {count} class folders, and ImageNet is to have 1000 classes: .*tools/new_config\.py'
    with pytest.raises(ValueError, match='train ' + words):
        prepare_training(IMAGENET, options=options)
    (tmp_path / 'x.pth').touch()
    with pytest.raises(ValueError, match='test ' + words):
        prepare_test(IMAGENET, str(tmp_path / 'x.pth'), options=options)


def test_imagenet_by_a_list_or_by_its_folders(tmp_path):
    config = Config.fromfile(IMAGENET)
    config.merge_from_dict({f'{stage}_dataloader.dataset.data_root': str(tmp_path) for stage in STAGES})
    folders(tmp_path, 10)
    (tmp_path / 'meta').mkdir()
    for split in ('train', 'val'):
        (tmp_path / 'meta' / f'{split}.txt').touch()
    check_class_counts(config, stages=STAGES)
    folders(tmp_path / 'whole', 1000)
    config.merge_from_dict({f'{stage}_dataloader.dataset.data_root': str(tmp_path / 'whole') for stage in STAGES})
    check_class_counts(config, stages=STAGES)


def test_named_classes(tmp_path):
    config = few(tmp_path, 6)
    config.train_dataloader.dataset.metainfo = dict(classes=['a', 'b'])
    with pytest.raises(ValueError, match='6 class folders, and CustomDataset is to have 2'):
        check_class_counts(config, stages=('train',))


def test_cifar(tmp_path):
    folder = tmp_path / 'cifar-100-python'
    folder.mkdir()
    options = {'data_root': str(tmp_path)}
    with pytest.raises(ValueError, match=r'train data .*-python/train. do not exist: unpack https.*data_root='):
        prepare_training(CIFAR, options=options)
    data = {'data': np.zeros((1, 3072), np.uint8), 'fine_labels': [0]}
    for name in ('train', 'test'):
        (folder / name).write_bytes(pickle.dumps(data))
    with pytest.raises(ValueError, match=r'train. are not the published ones \(MD5 [0-9a-f]{32}, not 16019d7e'):
        prepare_training(CIFAR, options=options)
    (tmp_path / 'x.pth').touch()
    with pytest.raises(ValueError, match='test data .* are not the published ones'):
        prepare_test(CIFAR, str(tmp_path / 'x.pth'), options=options)


def test_other_tasks_are_left_alone():
    config = Config.fromfile(CONFIGS / 'mask_rcnn_repnext_m0_coco.py')
    check_class_counts(config, stages=STAGES)
