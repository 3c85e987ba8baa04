"""mmengine's new-style configs, which hold classes for names, go through every tool like those of names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.config.lazy import LazyObject
from mmengine.hooks import CheckpointHook
from mmengine.model import PretrainedInit
from mmengine.registry import init_default_scope
from torch import nn

import repnext_mm
from repnext_mm.apis import launch, load_config, prepare_test, prepare_training, train
from repnext_mm.apis.launch import fit_to_machine
from repnext_mm.apis.train import add_missing_hooks
from repnext_mm.apis.weight_files import deploy_config
from repnext_mm.export import load_part
from repnext_mm.lab.bench import whole_model
from repnext_mm.lab.draw.predictions import missing_truth
from repnext_mm.models import build_box_tta, build_cls_head, type_name
from tests.configs.new_style import by_name, write_new_style

CONFIGS = Path(__file__).parents[2] / 'configs'
NAMES = {
    'detector': 'mask_rcnn_repnext_m0_digits',
    'segmentor': 'semantic_fpn_repnext_m0_digits',
    'classifier': 'repnext_m0_digits_cls',
    'distilled': 'repnext_m0_digits_distill',
}


@pytest.mark.parametrize(
    ('kind', 'name'),
    [
        ('RepNeXt', 'RepNeXt'),
        ('mmdet.RepNeXt', 'RepNeXt'),
        ('repnext_mm.models.RepNeXt', 'RepNeXt'),
        ('mmengine.model.PretrainedInit', 'Pretrained'),
        ('no.such.Thing', 'Thing'),
        (repnext_mm.RepNeXt, 'RepNeXt'),
        (PretrainedInit, 'Pretrained'),
        (nn.SyncBatchNorm, 'SyncBatchNorm'),
        (build_cls_head, 'RepNeXtClsHead'),
        (build_box_tta, 'BoxTTAModel'),
        (LazyObject('repnext_mm.models').RepNeXt, 'RepNeXt'),
        (None, 'None'),
    ],
)
def test_what_a_type_is_called(kind, name):
    assert type_name(kind) == name


@pytest.fixture(scope='module', params=NAMES, ids=str)
def pair(request, tmp_path_factory):
    plain = CONFIGS / f'{NAMES[request.param]}.py'
    return plain, write_new_style(plain, tmp_path_factory.mktemp('new') / plain.name)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / 'weights.pth'
    path.touch()
    return str(path)


def same(first, second):
    plain, new = (
        {key: value for key, value in config._cfg_dict.items() if not key.startswith(('custom_imports', 'it_'))}
        for config in (first, second)
    )  # mmengine keeps the imports of a new-style config in it
    assert by_name(plain) == by_name(new)


def teacherless(config):
    return {'model.teacher_checkpoint': None} if 'distill' in config.name else {}


@pytest.mark.parametrize('amp', [False, True], ids=['float32', 'amp'])
def test_training(pair, amp, monkeypatch):
    devices = {}
    for module in (train, launch):
        monkeypatch.setattr(module, 'get_device', lambda: devices['now'])
    options = {'randomness.seed': 0, 'sync_bn': 'torch'}
    made = []
    for path in pair:
        devices['now'] = 'cuda' if amp else 'cpu'
        config = prepare_training(path, amp=amp, options={**options, **teacherless(path)})
        config.model.norm_cfg = dict(type=nn.SyncBatchNorm if path is pair[1] else 'SyncBN')
        devices['now'] = 'cpu'
        fit_to_machine(config)
        assert config.model.pop('norm_cfg')['type'] == 'BN'
        train.add_missing_hooks(config)
        made.append(config)
    assert ('Amp' in type_name(made[1].optim_wrapper.type)) == amp
    assert type_name(made[1].default_hooks.checkpoint.type) == 'AtomicCheckpointHook'
    same(*made)


@pytest.mark.parametrize(
    'given',
    [dict(fuse=False), dict(show_dir='shown'), dict(out='found.pkl'), dict(tta=True)],
    ids=['no-fuse', 'show', 'out', 'tta'],
)
def test_testing(pair, given, weights):
    if given.get('tta') and 'tta_pipeline' not in load_config(pair[0]):
        pytest.skip('a config without test-time augmentation')
    first, second = (prepare_test(path, weights, **given) for path in pair)
    assert ('FuseBackboneHook' in [type_name(hook.type) for hook in second.custom_hooks]) == given.get('fuse', True)
    same(first, second)


def test_checkpoints_are_kept_whole_by_the_class_too():
    for kind in ('CheckpointHook', CheckpointHook, 'mmengine.hooks.CheckpointHook'):
        config = Config(dict(default_hooks=dict(checkpoint=dict(type=kind, interval=3))))
        assert add_missing_hooks(config)
        assert config.default_hooks.checkpoint == dict(type='AtomicCheckpointHook', interval=3)

    class Own(CheckpointHook):
        pass

    Own.__name__ = 'CheckpointHook'
    config = Config(dict(default_hooks=dict(checkpoint=dict(type=Own))))
    add_missing_hooks(config)
    assert config.default_hooks.checkpoint == dict(type=Own)


def test_a_config_without_a_scope_gets_its_models(pair, weights, tmp_path):
    path = tmp_path / 'scopeless.py'
    path.write_text(
        '\n'.join(line for line in pair[1].read_text().splitlines() if not line.startswith('default_scope'))
    )
    assert load_config(path).default_scope == load_config(pair[0]).default_scope


def test_what_reads_a_config_finds_the_same(pair, tmp_path):
    plain, new = (load_config(path) for path in pair)
    init_default_scope(plain.default_scope)
    assert by_name(new.custom_hooks) == by_name(plain.custom_hooks)
    assert by_name(deploy_config(new).custom_hooks) == by_name(deploy_config(plain).custom_hooks)
    if plain.default_scope != 'mmpretrain':
        assert [type(step).__name__ for step in whole_model.pipeline_of(new).transforms] == [
            type(step).__name__ for step in whole_model.pipeline_of(plain).transforms
        ]
    if plain.default_scope == 'mmseg':
        assert missing_truth(new, None) == missing_truth(plain, None)
    networks = [load_part(path, part='backbone').network for path in pair]
    assert [type(network).__name__ for network in networks] == ['RepNeXt', 'RepNeXt']


def test_pretrained_weights_of_a_class_are_read_safely(tmp_path):
    path = tmp_path / 'weights.pth'
    source = repnext_mm.RepNeXt('m0')
    torch.save({'state_dict': source.state_dict()}, path)
    backbone = repnext_mm.RepNeXt('m0', init_cfg=dict(type=PretrainedInit, checkpoint=str(path)))
    read = []
    backbone.load_pretrained = lambda **options: read.append(options)
    backbone.init_weights()
    assert read == [dict(checkpoint=str(path))]
