"""What the options of train and test do to a config."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.hooks import IterTimerHook, LoggerHook

from repnext_mm.apis import launch, prepare_test, prepare_training, train
from repnext_mm.apis import test as testing
from repnext_mm.apis.config import drop_initial_weights

CONFIGS = Path(__file__).parents[2] / 'configs'
COCO = CONFIGS / 'mask_rcnn_repnext_m4_coco.py'
ADE = CONFIGS / 'semantic_fpn_repnext_m4_ade20k.py'


@pytest.fixture(autouse=True)
def data_is_there(monkeypatch):
    for module in (testing, train):
        monkeypatch.setattr(module, 'check_files', lambda config, stages: None)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / 'weights.pth'
    path.touch()
    return str(path)


def test_testing_needs_no_pretrained_file(weights):
    config = prepare_test(COCO, weights)
    assert 'init_cfg' not in config.model.backbone
    assert (config.load_from, config.resume) == (weights, False)
    assert [hook.type for hook in config.custom_hooks] == ['FuseBackboneHook']
    assert config.default_hooks.strict_load == dict(type='StrictLoadHook', testing=True)


def test_no_fuse_takes_only_our_hook(weights):
    hooks = "[dict(type='EMAHook'), dict(type='FuseBackboneHook')]"
    config = prepare_test(COCO, weights, fuse=False, options={'custom_hooks': eval(hooks)})
    assert [hook['type'] for hook in config.custom_hooks] == ['EMAHook']


def test_tta_of_a_mask_model_is_boxes_only(weights):
    config = prepare_test(COCO, weights, tta=True)
    assert config.model.type == 'BoxTTAModel'
    assert config.model.module.type == 'MaskRCNN'
    assert 'init_cfg' not in config.model.module.backbone
    assert config.test_evaluator.metric == ['bbox']
    assert config.val_evaluator.metric == ['bbox', 'segm']
    assert config.test_dataloader.dataset.pipeline[1].type == 'TestTimeAug'


def test_tta_that_would_stop_in_the_middle_is_refused(weights):
    with pytest.raises(ValueError, match=r"tta_model\.type='DetTTAModel' cannot merge the masks of 'MaskRCNN'"):
        prepare_test(COCO, weights, tta=True, options={'tta_model.type': 'DetTTAModel'})
    with pytest.raises(ValueError, match='has no tta_model and no tta_pipeline'):
        prepare_test(COCO, weights, tta=True, options={'tta_model': None, 'tta_pipeline': None})


@pytest.mark.parametrize(('path', 'dumper'), [(COCO, 'DumpDetResults'), (ADE, 'DumpResults')])
def test_out_adds_a_dumper(path, dumper, weights):
    config = prepare_test(path, weights, out='found.pkl')
    assert [part['type'] for part in config.test_evaluator][1:] == [dumper]
    with pytest.raises(ValueError, match=r"--out 'found\.json'"):
        prepare_test(path, weights, out='found.json')


def test_show_dir_is_taken_from_the_current_folder(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = prepare_test(COCO, weights, show_dir='shown')
    assert config.default_hooks.visualization.draw is True
    assert config.default_hooks.visualization.test_out_dir == str(tmp_path / 'shown')
    config = prepare_test(ADE, weights, show_dir='shown')
    assert config.visualizer.save_dir == str(tmp_path / 'shown')
    classifier = {'default_hooks.visualization.type': 'VisualizationHook'}
    hook = prepare_test(ADE, weights, show_dir='shown', options=classifier).default_hooks.visualization
    assert (hook.enable, hook.out_dir) == (True, str(tmp_path / 'shown'))
    for options, words in (
        ({'default_hooks.visualization.type': 'OwnHook'}, "does not know .*'OwnHook'"),
        ({'default_hooks.visualization': None}, 'needs default_hooks.visualization'),
    ):
        with pytest.raises(ValueError, match=words):
            prepare_test(COCO, weights, show_dir='shown', options=options)


SCRATCH = {'model.backbone.init_cfg': None}


def test_auto_scale_lr():
    assert prepare_training(COCO, auto_scale_lr=True, options=SCRATCH).auto_scale_lr.enable is True
    assert prepare_training(COCO, options=SCRATCH).auto_scale_lr.enable is False
    with pytest.raises(ValueError, match=r'has no auto_scale_lr\.base_batch_size'):
        prepare_training(COCO, auto_scale_lr=True, options={'auto_scale_lr': None, **SCRATCH})


def on(device, monkeypatch):
    for module in (train, launch):
        monkeypatch.setattr(module, 'get_device', lambda: device)


MIXED = [
    ('cuda', 'OptimWrapper', 'AmpOptimWrapper', 'dynamic'),
    ('cuda', 'AdaptiveClipOptimWrapper', 'AdaptiveClipAmpOptimWrapper', 'dynamic'),
    ('cuda', 'Bfloat16OptimWrapper', 'Bfloat16OptimWrapper', None),
    ('cpu', 'OptimWrapper', 'Bfloat16OptimWrapper', None),
    ('cpu', 'AdaptiveClipOptimWrapper', 'AdaptiveClipBfloat16OptimWrapper', None),
    ('cpu', 'AmpOptimWrapper', 'Bfloat16OptimWrapper', None),
    ('cpu', 'AdaptiveClipAmpOptimWrapper', 'AdaptiveClipBfloat16OptimWrapper', None),
    ('cpu', 'Bfloat16OptimWrapper', 'Bfloat16OptimWrapper', None),
]


@pytest.mark.parametrize(('device', 'given', 'used', 'scale'), MIXED)
def test_amp(device, given, used, scale, monkeypatch):
    on(device, monkeypatch)
    options = {'optim_wrapper.type': given, **SCRATCH}
    if device == 'cpu' and 'Amp' in given:
        options |= {'optim_wrapper.loss_scale': 512.0, 'optim_wrapper.dtype': 'bfloat16'}
    wrapper = prepare_training(COCO, amp=True, options=options).optim_wrapper
    assert (wrapper.type, wrapper.get('loss_scale')) == (used, scale)
    assert device == 'cuda' or 'dtype' not in wrapper


def test_amp_refuses_what_it_cannot_do(monkeypatch):
    with pytest.raises(ValueError, match=r"--amp cannot replace optim_wrapper\.type='OwnWrapper'"):
        prepare_training(COCO, amp=True, options={'optim_wrapper.type': 'OwnWrapper', **SCRATCH})
    on('cpu', monkeypatch)
    options = {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.dtype': 'float16', **SCRATCH}
    with pytest.raises(ValueError, match="dtype='float16' needs a GPU, and none was found: omit dtype"):
        prepare_training(COCO, amp=True, options=options)
    on('mps', monkeypatch)
    with pytest.raises(ValueError, match='--amp needs a GPU or a CPU, and this is mps'):
        prepare_training(COCO, amp=True, options=SCRATCH)


def test_memory_format(weights):
    for config in (
        prepare_training(COCO, memory_format='channels_last', options=SCRATCH),
        prepare_test(COCO, weights, memory_format='channels_last'),
    ):
        assert config.default_hooks.memory_format == dict(type='MemoryFormatHook', memory_format='channels_last')
        assert config.default_hooks.checkpoint.type == 'AtomicCheckpointHook'
    assert 'memory_format' not in prepare_training(COCO, options=SCRATCH).default_hooks
    named = {'default_hooks.memory_format.type': 'MemoryFormatHook', **SCRATCH}
    assert prepare_training(COCO, options=named).default_hooks.memory_format == dict(type='MemoryFormatHook')
    config = prepare_training(COCO, memory_format='contiguous', options=named)
    assert config.default_hooks.memory_format.memory_format == 'contiguous'
    own = {'custom_hooks': [dict(type='MemoryFormatHook')], **SCRATCH}
    config = prepare_training(COCO, memory_format='contiguous', options=own)
    assert config.custom_hooks == [dict(type='MemoryFormatHook', memory_format='contiguous')]
    assert 'memory_format' not in config.default_hooks


def test_compile(monkeypatch):
    on('cpu', monkeypatch)
    assert 'compile' not in prepare_training(COCO, options=SCRATCH).default_hooks
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(ValueError, match='there is no no-such-compiler here: install one'):
        prepare_training(COCO, compile=True, options=SCRATCH)


def test_resume(weights):
    config = prepare_training(COCO, resume=weights, options=SCRATCH)
    assert (config.resume, config.load_from) == (True, weights)


def test_drop_initial_weights_looks_into_wrappers():
    config = Config(dict(model=dict(module=dict(pretrained='x', backbone=dict(type='A', init_cfg=dict(type='B'))))))
    drop_initial_weights(config.model)
    assert config.model.module == dict(backbone=dict(type='A'))


@pytest.mark.parametrize(('first', 'left'), [(True, ['LoggerHook', 'IterTimerHook']), (False, ['IterTimerHook'])])
def test_metrics_are_written_by_the_first_process(first, left, monkeypatch):
    runner = SimpleNamespace(hooks=[LoggerHook(), IterTimerHook()])
    monkeypatch.setattr(testing, 'is_main_process', lambda: first)
    testing.log_once(runner)
    assert [type(hook).__name__ for hook in runner.hooks] == left


def test_what_a_second_run_does_to_the_files_of_the_first_is_said(weights, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(testing, 'warn', said.append)
    shown, out = tmp_path / 'shown', tmp_path / 'found.pkl'
    prepare_test(COCO, weights, show_dir=str(shown), out=str(out))
    assert not said
    shown.mkdir()
    for name in 'abcd':
        (shown / f'{name}.jpg').touch()
    out.touch()
    prepare_test(COCO, weights, show_dir=str(shown), out=str(out))
    assert len(said) == 2
    assert 'a.jpg, b.jpg, c.jpg and 1 more already: images of the same names will be replaced' in said[0]
    assert said[1].endswith('found.pkl is there already: it will be replaced')
    folder = tmp_path / 'run'
    config = prepare_training(COCO, options=SCRATCH, work_dir=str(folder))
    assert not train.earlier_run(config)
    folder.mkdir()
    (folder / 'epoch_3.pth').touch()
    assert 'holds epoch_3.pth of an earlier run' in train.earlier_run(config)
    assert not train.earlier_run(prepare_training(COCO, options=SCRATCH, work_dir=str(folder), resume='auto'))


CLASSIFIER = CONFIGS / 'repnext_m0_imagenet.py'


@pytest.mark.parametrize(
    ('given', 'crop', 'edge'),
    [
        (dict(img_size=256), 256, 292),
        (dict(crop_pct=0.9), 224, 248),
        (dict(img_size=192, crop_pct=0.95), 192, 202),
        (dict(crop_pct=1.0), 224, 224),
    ],
    ids=['size', 'share', 'both', 'all of it'],
)
def test_size_and_share_of_the_crop_are_those_of_timm(given, crop, edge, weights):
    steps = {step.type: step for step in prepare_test(CLASSIFIER, weights, **given).test_dataloader.dataset.pipeline}
    assert (steps['CenterCrop'].crop_size, steps['ResizeEdge'].scale) == (crop, edge)


@pytest.mark.parametrize(
    ('path', 'given', 'words'),
    [
        (CLASSIFIER, dict(img_size=16), '--img-size 16 is too small'),
        (CLASSIFIER, dict(crop_pct=1.5), '--crop-pct 1.5'),
        (COCO, dict(img_size=224), 'of a classification pipeline.*this one has LoadImageFromFile, Resize'),
    ],
    ids=['small', 'share', 'detector'],
)
def test_a_crop_that_cannot_be(path, given, words, weights):
    with pytest.raises(ValueError, match=words):
        prepare_test(path, weights, **given)


@pytest.mark.parametrize('name', ['default_hooks', 'custom_hooks'])
def test_the_strict_hook_is_told_what_is_tested(name, weights):
    """Where a config has it, with its options; one that has none gets it, and a line that says so."""
    strict = dict(type='StrictLoadHook', prefix='net.')
    own = dict(default_hooks=dict(strict_load=strict)) if name == 'default_hooks' else dict(custom_hooks=[strict])
    config = Config(own)
    testing.require_strict_load(config, ema=True)
    found = config.default_hooks.strict_load if name == 'default_hooks' else config.custom_hooks[0]
    assert found == {**strict, 'testing': True, 'ema': True}
    assert ('strict_load' in config.default_hooks) == (name == 'default_hooks')


def test_a_config_without_the_strict_hook_gets_it_with_a_word(monkeypatch):
    said = []
    monkeypatch.setattr(testing, 'warn', said.append)
    config = Config(dict(custom_hooks=[dict(type='FuseBackboneHook')]))
    testing.require_strict_load(config, ema=False)
    assert config.default_hooks == dict(strict_load=dict(type='StrictLoadHook', testing=True))
    assert len(said) == 1
