"""The data set that configs name: built by the registry, made on first use, stock underneath."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, DefaultScope, init_default_scope

import repnext_mm.data  # noqa: F401 - registers

SCENES = dict(train=4, val=3)
CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.fixture(params=['mmdet', 'mmseg'])
def scope(request):
    pytest.importorskip(request.param)
    previous = dict(DefaultScope._instance_dict)
    init_default_scope(request.param)
    yield request.param
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(previous)


@pytest.fixture
def config(scope, tmp_path):
    name = {'mmdet': 'digits_instance', 'mmseg': 'digits_semantic'}[scope]
    config = Config.fromfile(CONFIGS / f'_base_/datasets/{name}.py')
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.dataset.update(data_root=str(tmp_path / 'scenes'), scenes=SCENES)
    return config


def test_registry_builds_the_stock_class(scope, config):
    module = __import__(f'{scope}.registry', fromlist=['DATASETS'])
    train = module.DATASETS.build(config.train_dataloader.dataset)
    val = DATASETS.build(config.val_dataloader.dataset)
    assert type(train).__name__ == {'mmdet': 'CocoDataset', 'mmseg': 'BaseSegDataset'}[scope]
    assert (len(train), len(val)) == (4, 3)
    assert train.metainfo['classes'][-10:] == tuple(f'digit {n}' for n in range(10))
    assert len(train.metainfo['palette']) == len(train.metainfo['classes'])


def test_pipelines_give_digits(scope, config):
    sample = DATASETS.build(config.train_dataloader.dataset)[0]
    assert sample['inputs'].shape == {'mmdet': (3, 256, 256), 'mmseg': (3, 160, 160)}[scope]
    truth = sample['data_samples']
    if scope == 'mmdet':
        masks = truth.gt_instances.masks
        assert len(truth.gt_instances.bboxes) == len(masks) >= 3
        assert masks.masks.any(axis=(1, 2)).all()
        assert int(truth.gt_instances.labels.max()) < 10
    else:
        values = torch.unique(truth.gt_sem_seg.data).tolist()
        assert 0 in values
        assert len(values) > 1
        assert set(values) <= set(range(11))


def test_inside_a_wrapper(scope, config):
    wrapped = DATASETS.build(dict(type='RepeatDataset', times=3, dataset=config.train_dataloader.dataset))
    assert len(wrapped) == 12
    assert 'digit 0' in wrapped.metainfo['classes']


def test_lazy_as_the_inferencers_ask_for_it(scope, config):
    assert 'digit 0' in DATASETS.build({**config.val_dataloader.dataset, 'lazy_init': True}).metainfo['classes']


@pytest.mark.parametrize(('name', 'value'), [('task', 'panoptic'), ('split', 'test')])
def test_unknown_choices_are_named(tmp_path, name, value):
    config = dict(type='DigitScenes', task='instance', split='val', data_root=str(tmp_path / 'never'))
    with pytest.raises(ValueError, match=f"{name}='{value}' is unknown: choose"):
        DATASETS.build({**config, name: value})
    assert not (tmp_path / 'never').exists()


def test_foreground_iou_leaves_out_the_background():
    pytest.importorskip('mmseg')
    metric = METRICS.build(dict(type='ForegroundIoU'))
    metric.dataset_meta = dict(classes=('background', 'digit 0', 'digit 1'))
    label = torch.tensor([[0, 0, 1, 1], [0, 0, 2, 2]])
    predicted = torch.tensor([[0, 1, 1, 1], [0, 0, 2, 0]])
    metric.process({}, [dict(pred_sem_seg=dict(data=predicted), gt_sem_seg=dict(data=label))])
    scores = metric.evaluate(size=1)
    assert scores['mIoU'] == pytest.approx(100 * (2 / 3 + 1 / 2) / 2, abs=0.01)
    assert metric.dataset_meta['classes'][0] == 'background'
