"""Detectors for boxes and for phones: each states its recipe, trains, tests fused, and becomes one ONNX file."""

from __future__ import annotations

import ast

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from repnext_mm.apis import prepare_test, prepare_training, run_test, run_training
from repnext_mm.apis.checks import check_model
from repnext_mm.export import export_part
from repnext_mm.lab.bench.complexity import model_complexity
from repnext_mm.models import ARCHITECTURES
from repnext_mm.reparam import fuse
from repnext_mm.reparam.fuse import count_norms
from tests.configs import CONFIGS
from tests.layouts import write_authors_checkpoint, write_coco

pytest.importorskip('mmdet')

ZOO = (CONFIGS.parent / 'docs/model_zoo.md').read_text()
KINDS = {
    'rtmdet': ('m0', 'm1', 'm2'),
    'rtmdet-ins': ('m0', 'm1', 'm2'),
    'faster_rcnn': ('m0', 'm3'),
    'retinanet': ('m0', 'm3'),
}
NAMES = [(kind, arch) for kind, archs in KINDS.items() for arch in archs]
FIRST = {'train_dataloader.dataset.pipeline.2.scale': (96, 96), 'val_dataloader.dataset.pipeline.1.scale': (96, 96)}
PHONE = {
    'train_dataloader.dataset.pipeline.2.img_scale': (96, 96),
    'train_dataloader.dataset.pipeline.3.scale': (160, 160),
    'train_dataloader.dataset.pipeline.4.crop_size': (96, 96),
    'train_dataloader.dataset.pipeline.7.size': (96, 96),
    'train_dataloader.dataset.pipeline.8.img_scale': (96, 96),
    'val_dataloader.dataset.pipeline.1.scale': (96, 96),
}
# of mmdet's points and masks
pytestmark = [
    pytest.mark.filterwarnings('ignore:torch.meshgrid', 'ignore:To copy construct:UserWarning:mmdet'),
    pytest.mark.filterwarnings('ignore:DeprecationWarning. .num_anchors. is deprecated'),
]


def read(kind, arch):
    return Config.fromfile(CONFIGS / f'{kind}_repnext_{arch}_coco.py')


@pytest.mark.parametrize(('kind', 'arch'), NAMES)
def test_what_every_config_holds(kind, arch):
    config, path = read(kind, arch), CONFIGS / f'{kind}_repnext_{arch}_coco.py'
    backbone, levels = config.model.backbone, list(ARCHITECTURES[arch].embed_dims)
    assert (backbone.arch, backbone.norm_eval) == (arch, False)
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint=f'pretrain/repnext_{arch}_distill_300e.pth')
    assert list(config.model.neck.in_channels) == (levels[1:] if kind.startswith('rtmdet') else levels)
    assert config.sync_bn == 'torch'
    assert dict(type='FuseBackboneHook') in config.custom_hooks
    assert config.model.data_preprocessor.bgr_to_rgb
    check_model(config.model)
    header = ast.get_docstring(ast.parse(path.read_text()))
    assert f'tools/dist_train.sh configs/{path.name}' in header
    assert 'Expected: not measured' in header


@pytest.mark.parametrize(('kind', 'arch'), NAMES)
def test_models_build_and_fuse(kind, arch):
    config = read(kind, arch)
    init_default_scope('mmdet')
    with torch.device('meta'):
        model = MODELS.build(config.model)
    fused, _ = fuse(model.backbone.to_empty(device='cpu').eval())
    assert count_norms(fused) == 0
    if kind.startswith('rtmdet'):
        assert config.model.neck.out_channels == model.bbox_head.in_channels == model.bbox_head.feat_channels
        assert model.bbox_head.rtm_cls[0].in_channels == ARCHITECTURES[arch].embed_dims[1]


@pytest.mark.parametrize('kind', ['rtmdet', 'rtmdet-ins'])
@pytest.mark.parametrize('arch', ['m0', 'm1', 'm2'])
def test_the_recipe_of_rtmdet(kind, arch):
    config = read(kind, arch)
    masks = kind == 'rtmdet-ins'
    assert config.optim_wrapper.optimizer == dict(type='AdamW', lr=4e-3, weight_decay=0.05)
    assert config.auto_scale_lr.base_batch_size == 8 * config.train_dataloader.batch_size == 256
    warm_up, cosine = config.param_scheduler
    assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (1e-5, 1000, False)
    assert (cosine.begin, cosine.end, cosine.T_max, cosine.eta_min) == (150, 300, 150, 4e-3 / 20)
    assert (config.train_cfg.max_epochs, config.train_cfg.val_interval) == (300, 10)
    assert config.train_cfg.dynamic_intervals == [(280, 1)]
    _, average, switch = config.custom_hooks
    assert average == dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002, update_buffers=True, priority=49)
    assert switch.switch_epoch == 280
    kinds = [step.type for step in config.train_dataloader.dataset.pipeline]
    last = [step.type for step in switch.switch_pipeline]
    assert [name for name in kinds if name not in last] == ['CachedMosaic', 'CachedMixUp']
    assert sorted(set(kinds) - {'CachedMosaic', 'CachedMixUp'}) == sorted(set(last))
    for pipeline in (config.train_dataloader.dataset.pipeline, switch.switch_pipeline):
        assert pipeline[1].get('with_mask', False) == masks
        assert ('FilterAnnotations' in [step.type for step in pipeline]) == masks
    assert config.test_evaluator.metric == (['bbox', 'segm'] if masks else 'bbox')


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'arch'), NAMES)
def test_the_model_zoo_says_how_large_each_is(kind, arch):
    shape = (640, 640) if kind.startswith('rtmdet') else (800, 1344)
    size = model_complexity(read(kind, arch), shape=shape, forms=['default'])['default']['total']
    (row,) = [line for line in ZOO.splitlines() if f'/{kind}_repnext_{arch}_coco.py)' in line]
    assert row.endswith(f'| {size.parameters / 1e6:.2f} M | {size.macs / 1e9:.2f} G |')


def test_the_recipe_of_the_others():
    for kind, rate in (('faster_rcnn', 2e-4), ('retinanet', 1e-4)):
        config = read(kind, 'm3')
        assert config.optim_wrapper.optimizer == dict(type='AdamW', lr=rate, weight_decay=0.05)
        assert (config.train_cfg.max_epochs, config.auto_scale_lr.base_batch_size) == (12, 16)
        assert config.test_evaluator.metric == 'bbox'
        steps = [step for step in config.train_dataloader.dataset.pipeline if step.type == 'LoadAnnotations']
        assert steps == [dict(type='LoadAnnotations', with_bbox=True)]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('foreign')
    write_coco(folder / 'coco')
    write_authors_checkpoint(folder / 'authors.pth', arch='m0')
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_train_test_fused_and_export(kind, root, tmp_path, capfd):
    name = f'{kind}_repnext_m0_coco'
    config = CONFIGS / f'{name}.py'
    given = {
        'data_root': f'{root}/coco/',
        'model.backbone.init_cfg.checkpoint': str(root / 'authors.pth'),
        'train_cfg.max_epochs': 1,
        'train_dataloader.batch_size': 2,
        'train_dataloader.pin_memory': False,
        **{f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')},
        **{f'{split}_dataloader.persistent_workers': False for split in ('train', 'val', 'test')},
        **{f'{split}_dataloader.dataset.data_root': f'{root}/coco/' for split in ('train', 'val', 'test')},
        **{
            f'{split}_evaluator.ann_file': f'{root}/coco/annotations/instances_val2017.json'
            for split in ('val', 'test')
        },
        **(PHONE if kind.startswith('rtmdet') else FIRST),
        'test_dataloader.dataset.pipeline.1.scale': (96, 96),
        'default_hooks.checkpoint.interval': 1,
        'experiment_name': f'{name}-train',
    }
    runner = run_training(prepare_training(config, work_dir=str(tmp_path), options=given))
    assert runner.iter == 2
    checkpoint = str(tmp_path / 'epoch_1.pth')
    results, limits = {}, 'model.test_cfg.rcnn' if kind == 'faster_rcnn' else 'model.test_cfg'
    given |= {f'{limits}.score_thr': 1e-6, f'{limits}.max_per_img': 20}  # after two steps nothing is sure
    for fused in (True, False):
        capfd.readouterr()
        options = given | {'experiment_name': f'{name}-{fused}', 'visualizer.name': f'{name}-{fused}'}
        results[fused] = run_test(
            prepare_test(config, checkpoint, work_dir=str(tmp_path / f'{fused}'), fuse=fused, options=options)
        )
        assert ('norms 53 -> 0' in ''.join(capfd.readouterr())) == fused
    assert results[True] == pytest.approx(results[False], abs=1e-3)
    assert 'coco/bbox_mAP' in results[True]
    assert ('coco/segm_mAP' in results[True]) == (kind == 'rtmdet-ins')
    pytest.importorskip('onnx')
    done = export_part(config, tmp_path / 'det.onnx', checkpoint=checkpoint, shape=(1, 3, 64, 96))
    assert done.export.path.is_file()
    assert list(done.export.errors)[:3] == ['boxes', 'scores', 'labels']
    assert ('masks' in done.export.errors) == (kind == 'rtmdet-ins')
