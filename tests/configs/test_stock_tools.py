"""The tools that the mm packages bring along run on our configs: what they read is there, and the analyses run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from repnext_mm.models import type_name
from tests.tools.running import ROOT, run_tool

CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
EVERY = [
    'auto_scale_lr',
    'custom_hooks',
    'default_hooks.visualization',
    'default_scope',
    'env_cfg',
    'load_from',
    'log_level',
    'model.backbone',
    'optim_wrapper.type',
    'param_scheduler',
    'resume',
    'test_cfg',
    'test_dataloader.batch_size',
    'test_dataloader.dataset',
    'test_evaluator',
    'train_cfg',
    'train_dataloader.batch_size',
    'train_dataloader.dataset',
    'val_cfg',
    'val_dataloader.batch_size',
    'val_dataloader.dataset',
    'val_evaluator',
    'visualizer',
]
"""What their tools read of a config by name, found with grep; ``work_dir`` and ``launcher`` are theirs to set."""
OWN = {
    'mmdet': ['dataset_type', 'tta_model'],
    'mmseg': ['data_preprocessor.mean', 'data_preprocessor.std', 'model.decode_head', 'tta_model'],
    'mmpretrain': [],
}


def value(config, path):
    for key in path.split('.'):
        config = config[key]
    return config


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_what_stock_tools_read_is_there(path):
    config = Config.fromfile(path)
    digits = 'digits' in path.stem  # no batch to scale the rate by
    named = [*EVERY, *OWN[config.default_scope]]
    if type_name(config.model.type) == 'DistilledClassifier':
        named.remove('model.backbone')
    for name in named[digits:]:
        value(config, name)
    top = config.get('data_preprocessor')
    assert top is None or top == config.model.data_preprocessor


def stock(package, *parts):
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent.joinpath('.mim', 'tools', *parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('config', 'tool', 'arguments', 'words'),
    [
        ('mask_rcnn_repnext_m0_digits', ('mmdet', 'analysis_tools', 'get_flops.py'), ['--num-images', '1'], 'Flops:'),
        ('semantic_fpn_repnext_m0_digits', ('mmseg', 'analysis_tools', 'get_flops.py'), ['--shape', '160'], 'Flops:'),
        ('repnext_m0_digits_cls', ('mmpretrain', 'analysis_tools', 'get_flops.py'), ['--shape', '32'], 'Flops:'),
        ('repnext_m0_imagenet', ('mmpretrain', 'analysis_tools', 'get_flops.py'), ['--shape', '224'], 'Flops:'),
    ],
    ids=['mmdet', 'mmseg', 'mmpretrain', 'imagenet'],
)
def test_flops(config, tool, arguments, words, tmp_path):
    shown = run_tool(stock(*tool), ROOT / f'configs/{config}.py', *arguments, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert words in shown


@pytest.mark.slow
@pytest.mark.parametrize('layer', ['backbone.stages.3.blocks.0.norm', 'backbone.stages.3'], ids=['norm', 'stage'])
def test_class_activation_maps_of_mmpretrain(layer, tmp_path):
    import cv2
    import numpy as np

    pytest.importorskip('pytorch_grad_cam')
    path = ROOT / 'configs/repnext_m0_imagenet.py'
    config = Config.fromfile(path)
    init_default_scope('mmpretrain')
    torch.save({'state_dict': MODELS.build(config.model).state_dict()}, tmp_path / 'weights.pth')
    cv2.imwrite(str(tmp_path / 'a.png'), np.random.RandomState(0).randint(0, 255, (224, 224, 3), np.uint8))
    run_tool(
        stock('mmpretrain', 'visualization', 'vis_cam.py'),
        'a.png',
        path,
        'weights.pth',
        '--target-layers',
        layer,
        '--save-path',
        'cam.png',
        '--device',
        'cpu',
        cwd=tmp_path,
        PYTHONPATH=str(ROOT),
    )
    assert (tmp_path / 'cam.png').is_file()


@pytest.mark.slow
def test_predictions_of_mmseg(tmp_path):
    path = ROOT / 'configs/semantic_fpn_repnext_m0_digits.py'
    config = Config.fromfile(path)
    init_default_scope('mmseg')
    torch.save({'state_dict': MODELS.build(config.model).state_dict(), 'meta': {}}, tmp_path / 'weights.pth')
    few = ['test_dataloader.dataset.indices=2', 'test_dataloader.num_workers=0']
    few += ['test_dataloader.persistent_workers=False']
    shown = run_tool(
        stock('mmseg', 'test.py'),
        path,
        'weights.pth',
        '--out',
        'found',
        '--cfg-options',
        *few,
        cwd=tmp_path,
        PYTHONPATH=str(ROOT),
    )
    assert 'mIoU' in shown
    assert len(list((tmp_path / 'found').glob('*.png'))) == 2
