"""The loss in the log of a run is the one that was back-propagated, for every kind of model that the configs train."""

from __future__ import annotations

import copy
import itertools
import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from torch.utils.data import Dataset

from tests.configs import CONFIGS
from tests.training.test_distillation import STUDENT, TEACHER

pytest.importorskip('mmcv.ops')
pytest.importorskip('mmpretrain')

NUMBERS = itertools.count()
TIMM = dict(type='TimmClassifier', model_name='mobilenetv3_small_050', num_classes=4)
UNITS = dict(
    type='ImageClassifier',
    backbone=dict(type='RepNeXtU', arch=dict(dims=(6, 12, 18, 24), depths=(1, 1, 1, 1)), out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=4, in_channels=24),
)
CONVNEXT = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ConvNeXtWithMixedDownsample',
        shortcut='after_norm',
        arch=dict(channels=[4, 8, 16, 32], depths=[1] * 4),
    ),
    head=dict(type='LinearClsHead', num_classes=4, in_channels=32),
)


def distilled(student, **options):
    return dict(type='DistilledClassifier', student=student, teacher=TEACHER, **options)


def with_head(model, **options):
    return {**model, 'head': {**model['head'], **options}}


CLASSIFIERS = {
    'RepNeXt': STUDENT,
    'RepNeXt, smooth labels and accuracies': with_head(
        STUDENT, loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'), cal_acc=True
    ),
    'RepNeXt, one head': with_head(STUDENT, deploy=True),
    'RepNeXtU': UNITS,
    'ConvNeXt, mixed downsampling': CONVNEXT,
    'distilled, two heads, hard': distilled(STUDENT, alpha=0.3),
    'distilled, two heads, soft': distilled(STUDENT, kind='soft', tau=3.0),
    'distilled, with accuracies': distilled(with_head(STUDENT, cal_acc=True)),
    'distilled, one head': distilled(TEACHER),
    'distilled, timm': distilled(TIMM),
    'distilled, the teacher alone': distilled(STUDENT, alpha=1.0),
}


@OPTIM_WRAPPERS.register_module()
class Recorder(OptimWrapper):
    """Notes what it back-propagates."""

    def update_params(self, loss, *rest, **more):
        self.seen = [*getattr(self, 'seen', []), loss.item()]
        super().update_params(loss, *rest, **more)


class Samples(Dataset):
    """Two images of noise with what the task wants to know of them."""

    metainfo = dict(classes=('a', 'b', 'c', 'd'))  # noqa: RUF012

    def __init__(self, annotated, size):
        self.annotated, self.size = annotated, size

    def __len__(self):
        return 2

    def __getitem__(self, index):
        image = torch.from_numpy(np.random.default_rng(index).integers(0, 255, (3, self.size, self.size), np.uint8))
        return dict(inputs=image, data_samples=self.annotated(index, self.size))


def labeled(index, size):
    from mmpretrain.structures import DataSample

    return DataSample().set_gt_label(index + 1)


def with_objects(index, size):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    masks = np.zeros((2, size, size), np.uint8)
    masks[0, 8:40, 8:30], masks[1, 50:90, 40:80] = 1, 1
    objects = InstanceData(
        bboxes=torch.tensor([[8.0, 8, 30, 40], [40, 50, 80, 90]]),
        labels=torch.tensor([index, 2]),
        masks=BitmapMasks(masks, size, size),
    )
    meta = dict(img_shape=(size, size), ori_shape=(size, size), pad_shape=(size, size), batch_input_shape=(size, size))
    sample = DetDataSample(metainfo=meta, gt_instances=objects)
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return sample


def with_labels_of_pixels(index, size):
    from mmseg.structures import SegDataSample

    labels = torch.from_numpy(np.random.default_rng(index).integers(0, 4, (1, size, size)))
    meta = dict(img_shape=(size, size), ori_shape=(size, size), pad_shape=(size, size))
    return SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=labels))


def train(model, folder, annotated=labeled, size=32):
    """Two steps by a real Runner; what they back-propagated, and the log's lines."""
    scope = {labeled: 'mmpretrain', with_objects: 'mmdet', with_labels_of_pixels: 'mmseg'}[annotated]
    init_default_scope(scope)
    runner = Runner(
        copy.deepcopy(model),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=Samples(annotated, size),
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='pseudo_collate' if scope != 'mmpretrain' else 'default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(type='Recorder', optimizer=dict(type='SGD', lr=1e-3)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1), checkpoint=None),
        log_processor=dict(window_size=1),  # else a line has the mean of several steps
        log_level='WARNING',
        randomness=dict(seed=0),
        default_scope=scope,
        experiment_name=f'logged-{next(NUMBERS)}',
    )
    runner.train()
    (log,) = folder.glob('*/vis_data/scalars.json')
    return runner.optim_wrapper.seen, [json.loads(line) for line in log.read_text().splitlines()]


def assert_agree(seen, lines):
    assert len(seen) == len(lines) == 2
    assert [line['loss'] for line in lines] == pytest.approx(seen, rel=1e-6)
    assert min(seen) > 0
    for line in lines:
        parts = [value for name, value in line.items() if 'loss' in name and name != 'loss']
        assert not parts or sum(parts) == pytest.approx(line['loss'], rel=1e-5)


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_classifiers(name, tmp_path):
    seen, lines = train(CLASSIFIERS[name], tmp_path)
    assert_agree(seen, lines)
    if name.startswith('distilled'):
        assert {'loss_base', 'loss_distillation'} <= set(lines[0])


def test_detectors(tmp_path):
    model = Config.fromfile(CONFIGS / 'mask_rcnn_repnext_m0_digits.py').model
    assert_agree(*train(model, tmp_path, with_objects, 96))


def test_segmentors(tmp_path):
    model = Config.fromfile(CONFIGS / 'semantic_fpn_repnext_m0_digits.py').model
    assert_agree(*train(model, tmp_path, with_labels_of_pixels, 160))
