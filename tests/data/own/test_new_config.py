"""Configs for a user's own data: what they hold, and what they inherit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.registry import DATASETS, init_default_scope
from mmengine.registry import MODELS as NETWORKS

import repnext_mm
from repnext_mm.apis import load_config
from repnext_mm.apis.checks import check_files, check_model
from repnext_mm.data.own.new_config import new_config
from repnext_mm.data.scene_files import CLASSES
from tests.data.own.small_sets import write_coco
from tests.layouts import write_authors_checkpoint

SEG_CLASSES = ('background', *CLASSES)
ROOT = Path(__file__).parents[3]


def write(task, data, **options):
    return new_config(task=task, data=data, out=data.parent / 'config.py', arch='m0', **options)


def values(node, key):
    """Every value of a key, at any depth."""
    found = [node[key]] if isinstance(node, dict) and key in node else []
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return found + [value for part in inner for value in values(part, key)]


@pytest.mark.parametrize('task, rate', [('det', 2e-4 * 6 / 16), ('seg', 1e-4 * 6 / 16), ('cls', 4e-3 * 6 / 2048)])
def test_the_config_holds_everything(scenes, pets, task, rate, tmp_path):
    weights = write_authors_checkpoint(tmp_path / 'authors.pth', arch='m0')
    data = pets if task == 'cls' else scenes
    classes = {'det': CLASSES, 'seg': SEG_CLASSES, 'cls': ('cat', 'dog')}[task]
    options = dict(batch=2, gpus=3) if task != 'cls' else dict(batch=3, gpus=2)
    if task == 'cls':
        for index in range(2, 5):
            shutil.copy(data / 'train/cat/0.jpg', data / f'train/cat/{index}.jpg')
    done = write(task, data, classes=classes if task == 'seg' else None, checkpoint=str(weights), **options)
    assert not done.findings.errors, done.findings.report()
    config = load_config(done.path)
    check_model(config.model)
    check_files(config, stages=('train', 'val', 'test'))
    init_default_scope(config.default_scope)
    assert set(values(config.model.to_dict(), 'num_classes')) == {len(classes)}
    assert config.optim_wrapper.optimizer.lr == pytest.approx(rate)
    assert config.auto_scale_lr.base_batch_size == 6
    assert config.model.backbone.init_cfg == dict(type='Pretrained', checkpoint=weights.as_posix())
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = DATASETS.build(config[loader].dataset)
        assert tuple(dataset.metainfo['classes']) == classes
        assert len(dataset) > 0
        assert dataset[0] is not None


MODELS = {
    'mask-rcnn': ('MaskRCNN', 2e-4 / 16),
    'faster-rcnn': ('FasterRCNN', 2e-4 / 16),
    'retinanet': ('RetinaNet', 1e-4 / 16),
    'rtmdet': ('RTMDet', 4e-3 / 256),
    'rtmdet-ins': ('RTMDet', 4e-3 / 256),
    'semantic-fpn': ('FPNHead', 1e-4 / 16),
    'upernet': ('UPerHead', 1e-4 / 16),
    'segformer-head': ('SegformerHead', 1e-4 / 16),
}


@pytest.mark.parametrize('model', MODELS)
def test_every_model(scenes, model):
    kind, rate = MODELS[model]
    task = 'seg' if kind.endswith('Head') else 'det'
    classes = SEG_CLASSES if task == 'seg' else CLASSES
    done = write(task, scenes, model=model, classes=SEG_CLASSES if task == 'seg' else None, batch=2, size=64, epochs=30)
    config = load_config(done.path)
    check_model(config.model)
    check_files(config, stages=('train', 'val', 'test'))
    init_default_scope(config.default_scope)
    assert kind in (config.model.type, config.model.get('decode_head', {}).get('type'))
    assert set(values(config.model.to_dict(), 'num_classes')) == {len(classes)}
    assert config.optim_wrapper.optimizer.lr == pytest.approx(2 * rate)
    masks = model in ('mask-rcnn', 'rtmdet-ins')
    if task == 'det':
        assert config.val_evaluator.metric == (['bbox', 'segm'] if masks else ['bbox'])
        (load,) = [step for step in config.train_dataloader.dataset.pipeline if step.type == 'LoadAnnotations']
        assert load.with_mask == masks
        assert load.get('poly2mask', True)  # masks of the scenes are run lengths, which mmdet would ignore otherwise
    if model.startswith('rtmdet'):
        assert [hook.type for hook in config.custom_hooks] == ['FuseBackboneHook', 'EMAHook', 'PipelineSwitchHook']
        assert config.custom_hooks[2].switch_epoch == config.train_cfg.dynamic_intervals[0][0] == 28
        assert config.param_scheduler[1].begin + config.param_scheduler[1].T_max == 30
    with torch.device('meta'):
        NETWORKS.build(config.model)
    samples = DATASETS.build(config.train_dataloader.dataset)
    assert samples[0] is not None
    assert not masks or some_masks(samples)


def test_polygons_stay_polygons_in_a_mosaic(tmp_path):
    config = load_config(write('det', write_coco(tmp_path / 'data', masks=True), model='rtmdet-ins').path)
    init_default_scope('mmdet')
    kinds = [step.get('poly2mask') for step in config.train_dataloader.dataset.pipeline]
    assert False in kinds
    assert some_masks(DATASETS.build(config.train_dataloader.dataset))


def some_masks(samples):
    """A random crop may hold no object, sixteen of them hold some."""
    return any(len(samples[at % len(samples)]['data_samples'].gt_instances.masks) for at in range(16))


def drop_masks(scenes):
    for path in (scenes / 'annotations').glob('*.json'):
        content = json.loads(path.read_text())
        for entry in content['annotations']:
            del entry['segmentation']
        path.write_text(json.dumps(content))


def test_a_model_of_masks_needs_masks(scenes):
    drop_masks(scenes)
    with pytest.raises(ValueError, match='--model rtmdet-ins learns masks, and the annotations have boxes only'):
        write('det', scenes, model='rtmdet-ins')


def test_boxes_alone_give_faster_r_cnn(scenes):
    drop_masks(scenes)
    done = write('det', scenes, classes=CLASSES)
    assert 'boxes (no masks)' in done.findings.report()
    config = load_config(done.path)
    assert config.model.type == 'FasterRCNN'
    assert config.model.roi_head.mask_head is None
    assert config.val_evaluator.metric == ['bbox']


def test_roboflow_s_layout(scenes):
    for old, new in (('training', 'train'), ('validation', 'valid')):
        (scenes / 'images' / old).rename(scenes / new)
        (scenes / f'annotations/instances_{old}.json').rename(scenes / new / '_annotations.coco.json')
    config = load_config(write('det', scenes).path)
    assert config.val_dataloader.dataset.ann_file == 'valid/_annotations.coco.json'
    assert config.val_dataloader.dataset.data_prefix == dict(img='valid')


def test_configs_are_inherited_from_an_installed_wheel(pets, tmp_path, monkeypatch):
    package = tmp_path / 'site-packages/repnext_mm'
    shutil.copytree(ROOT / 'configs/_base_', package / '.mim/configs/_base_')
    monkeypatch.setattr('repnext_mm.data.own.new_config.PACKAGE', package)
    done = write('cls', pets, batch=4)
    assert str(package / '.mim/configs/_base_') in done.path.read_text()
    assert load_config(done.path).model.backbone.arch == 'm0'


def test_configs_are_inherited_relatively_inside_a_clone(pets, tmp_path, monkeypatch):
    shutil.copytree(ROOT / 'configs/_base_', tmp_path / 'clone/configs/_base_')
    monkeypatch.setattr('repnext_mm.data.own.new_config.PACKAGE', tmp_path / 'clone/repnext_mm')
    done = new_config(task='cls', data=pets, out=tmp_path / 'clone/own/pets.py', batch=4)
    assert "'../configs/_base_/models/repnext_classifier.py'" in done.path.read_text()
    assert load_config(done.path).model.backbone.arch == 'm1'


BAD = {
    "nowhere' does not exist: give the folder": dict(data='nowhere'),
    "task 'pose' is unknown": dict(task='pose'),
    "--model 'upernet' is not a model of --task det: choose one of mask-rcnn, faster": dict(
        task='det', model='upernet'
    ),
    '--boxes-only leaves them out': dict(task='det', model='mask-rcnn', boxes_only=True),
    "unknown arch 'm9'": dict(arch='m9'),
    '--classes is needed for seg': dict(task='seg'),
    'segmentation needs the background too': dict(task='seg', classes=['cat']),
    'must be different names': dict(classes=['cat', 'cat']),
    'is about label maps': dict(reduce_zero_label=True),
    'let its name end in .py': dict(out='config.yaml'),
    '--batch 1 is too small: give at least 2': dict(batch=1),
    '--gpus 0 is too small': dict(gpus=0),
    '--epochs 0 is too small': dict(epochs=0),
    '--size 16 is too small': dict(size=16),
    "--checkpoint 'gone.pth' does not exist": dict(checkpoint='gone.pth'),
    "has no folder of class folders named as the split 'train' (it holds no file)": dict(data='empty'),
    'has no .json file up to 3 folders below it, but 8 .jpg': dict(task='det'),
    '--boxes-only is about annotations with masks: omit it for cls': dict(boxes_only=True),
    '--map-suffix is about label maps': dict(map_suffix='.png'),
    'is there already': dict(out='there.py'),
}


@pytest.mark.parametrize('sentence', BAD)
def test_bad_input_is_one_sentence(pets, sentence, monkeypatch):
    monkeypatch.chdir(pets.parent)
    Path('empty').mkdir()
    Path('there.py').touch()
    with pytest.raises((OSError, ValueError)) as caught:
        new_config(**dict(task='cls', data='pets') | BAD[sentence])
    assert sentence in str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_published_name_is_left_to_the_training(pets):
    done = write('cls', pets, batch=2, checkpoint='pretrain/repnext_m0_distill_300e.pth')
    assert not done.findings.errors, done.findings.report()
    assert "checkpoint='repnext_m0_distill_300e'" in done.path.read_text()
    with pytest.raises(ValueError, match="'repnext_m3_coco' holds RepNeXt m3, not m0"):
        new_config(task='cls', data=pets, arch='m0', checkpoint='repnext_m3_coco')
    with pytest.raises(ValueError, match='of form keep_norms: fused weights cannot be trained on'):
        new_config(task='cls', data=pets, arch='m0', checkpoint='repnext_m0_distill_300e_fused')


def test_a_checkpoint_of_another_kind(pets):
    weights = write_authors_checkpoint(pets.parent / 'm0.pth', arch='m0')
    with pytest.raises(ValueError, match='holds RepNeXt m0, not m1'):
        new_config(task='cls', data=pets, checkpoint=str(weights))
    torch.save(repnext_mm.RepNeXt('m0', deploy=True).state_dict(), weights)
    with pytest.raises(ValueError, match='of form default: fused weights cannot be trained on'):
        new_config(task='cls', data=pets, checkpoint=str(weights), arch='m0')
