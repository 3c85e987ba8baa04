"""What the tests of hostile files share: a pickle that leaves a trace, tiny configs, and tools run in this process."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from repnext_mm.apis import load_config
from repnext_mm.data import SceneSet, ensure_digits, ensure_scenes
from tests.tools.running import ROOT

ARCH = 'dict(embed_dims=(8, 16, 32, 64), depths=(1, 1, 1, 1))'
TINY = f'arch={ARCH[:-1]}, _delete_=True)'
LOADER = "dict(num_workers=0, persistent_workers=False, batch_size={batch}, dataset=dict(data_root='{data}', {few}))"
CLASSIFIER = f"""
_base_ = '{ROOT}/configs/repnext_m0_digits_cls.py'
model = dict(backbone=dict({TINY}), head=dict(in_channels=64))
param_scheduler = dict(warmup_epochs=0)
train_cfg = dict(max_epochs=1, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1))
"""
DETECTOR = f"""
_base_ = '{ROOT}/configs/mask_rcnn_repnext_m0_digits.py'
model = dict(backbone=dict({TINY}), neck=dict(in_channels=[8, 16, 32, 64]))
val_evaluator = test_evaluator = dict(ann_file='DATA/annotations/instances_validation.json')
"""
SEGMENTOR = f"""
_base_ = '{ROOT}/configs/semantic_fpn_repnext_m0_digits.py'
model = dict(backbone=dict({TINY}), neck=dict(in_channels=[8, 16, 32, 64]))
train_cfg = dict(max_iters=2, val_interval=2)
"""
DISTILLED = """
_base_ = 'cls.py'
model = dict(
    _delete_=True, type='DistilledClassifier', student={{_base_.model}}, teacher={{_base_.model}},
    teacher_checkpoint='bad.pth', kind='hard', alpha=0.5)
"""
# A stock detector that reads a weight file while it is built.
TEACHER = f"""
_base_ = 'det.py'
backbone = dict(type='RepNeXt', arch={ARCH})
neck = dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=32, num_outs=5)
anchors = dict(
    type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=[8, 16, 32, 64, 128])
head = dict(
    type='GFLHead', num_classes=10, in_channels=32, feat_channels=32, stacked_convs=1, reg_max=4,
    anchor_generator=anchors)
model = dict(
    _delete_=True, type='KnowledgeDistillationSingleStageDetector', backbone=backbone, neck=neck, bbox_head=head,
    data_preprocessor=dict(type='DetDataPreprocessor'), teacher_ckpt='bad.pth',
    teacher_config=dict(model=dict(type='GFL', backbone=backbone, neck=neck, bbox_head=head)))
"""


class Canary:
    """A pickle that makes a folder when it is loaded: the sign that a file was executed."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
    """Data, tiny configs of all tasks, and an image."""
    folder = tmp_path_factory.mktemp('tiny')
    ensure_digits(folder / 'digits')
    ensure_scenes(folder / 'scenes', SceneSet(train=4, val=2, size=128))
    cv2.imwrite(str(folder / 'image.jpg'), np.full((64, 64, 3), 200, np.uint8))
    for name, text in (('cls', CLASSIFIER), ('det', DETECTOR), ('seg', SEGMENTOR)):
        data = folder / ('digits' if name == 'cls' else 'scenes')
        few = 'indices=8' if name == 'cls' else 'scenes=dict(train=4, val=2, size=128)'
        for loader, batch in (('train', 2), ('val', 1), ('test', 1)):
            text += f'{loader}_dataloader = {LOADER.format(batch=batch, data=data, few=few)}\n'
        text += f"data_root = '{data}'\n"
        (folder / f'{name}.py').write_text(text.replace('DATA', str(data)))
    (folder / 'distilled.py').write_text(DISTILLED)
    (folder / 'teacher.py').write_text(TEACHER)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a hostile file; nothing that reads it may make the folder `trace`."""
    content = {'state_dict': {'w': torch.ones(1)}, 'meta': {'epoch': 1, 'iter': 1}, 'extra': Canary(tmp_path / 'trace')}
    torch.save(content, tmp_path / 'bad.pth')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')  # which tools set
    return tmp_path


def run(tool, *words, monkeypatch):
    """Run a tool in this process; returns the sentence that it ends with."""
    monkeypatch.setattr(sys, 'argv', [tool, *map(str, words)])
    try:
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
    except (SystemExit, ValueError) as stopped:
        return str(stopped)
    return ''


def model_of(path):
    """A config's model with random weights."""
    config = load_config(path)
    init_default_scope(config.default_scope)
    torch.manual_seed(0)
    return MODELS.build(config.model)


def files_below(root):
    return {path.relative_to(root) for path in root.rglob('*') if path.is_file()}
