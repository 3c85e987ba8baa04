"""No file of a stranger's is executed, by no tool, unless the user says --trust-pickle."""

from __future__ import annotations

import os
import pickle
import shutil
from functools import partial

import pytest
import torch

from repnext_mm.apis import prepare_training, run_training
from repnext_mm.apis import train as apis_train
from repnext_mm.checkpoints import read_checkpoint
from tests.reliability.hostile import Canary, model_of, run
from tests.tools.running import ROOT

pytestmark = [  # several runs in one process, and stock hooks about what was not asked for
    pytest.mark.filterwarnings('ignore:.*instance named of visualizer has been created'),
    pytest.mark.filterwarnings('ignore:The draw is False'),
    pytest.mark.filterwarnings('ignore:DeprecationWarning. .num_anchors. is deprecated'),
    pytest.mark.filterwarnings('ignore:Implicitly cleaning up'),
]


def test_the_canary_works(here):
    """Without this, every test below could pass for the wrong reason."""
    read_checkpoint(here / 'bad.pth', trust_pickle=True)
    assert (here / 'trace').is_dir()


MODEL = ('--config', '{cls}', '--checkpoint', 'bad.pth')
REFUSALS = {
    'train, resumed': ('train.py', '{cls}', '--resume', 'bad.pth'),
    'train, load_from': ('train.py', '{cls}', '--cfg-options', 'load_from=bad.pth'),
    'train, backbone': (
        'train.py',
        '{det}',
        '--cfg-options',
        'model.backbone.init_cfg.type=Pretrained',
        'model.backbone.init_cfg.checkpoint=bad.pth',
    ),
    'train, whole model': (
        'train.py',
        '{cls}',
        '--cfg-options',
        'model.init_cfg.type=Pretrained',
        'model.init_cfg.checkpoint=bad.pth',
    ),
    'train, teacher': ('train.py', '{distilled}'),
    'train, teacher of mmdet': ('train.py', '{teacher}'),
    'train, other runner': ('train.py', '{cls}', '--resume', 'bad.pth', '--cfg-options', 'runner_type=FlexibleRunner'),
    'test': ('test.py', '{cls}', 'bad.pth'),
    'test, detector': ('test.py', '{det}', 'bad.pth'),
    'test, segmentor': ('test.py', '{seg}', 'bad.pth'),
    'test, teacher of mmdet': ('test.py', '{teacher}', 'bad.pth'),
    'infer, detector': ('infer.py', '{image}', '{det}', 'bad.pth'),
    'infer, segmentor': ('infer.py', '{image}', '{seg}', 'bad.pth'),
    'convert': ('checkpoint.py', 'convert', 'bad.pth', 'out.pth'),
    'fuse': ('checkpoint.py', 'fuse', 'bad.pth', '{cls}', 'out.pth'),
    'fuse, teacher of mmdet': ('checkpoint.py', 'fuse', 'bad.pth', '{teacher}', 'out.pth'),
    'compare': ('checkpoint.py', 'compare', 'bad.pth', 'bad.pth'),
    'export, backbone': ('export.py', 'm0', 'out.onnx', '--checkpoint', 'bad.pth'),
    'export, model': ('export.py', '{cls}', 'out.onnx', '--checkpoint', 'bad.pth'),
    'benchmark': ('benchmark.py', '--config', '{det}', '--checkpoint', 'bad.pth', '--output', 'out/x', '--rounds', '1'),
    'benchmark, teacher of mmdet': ('benchmark.py', '--config', '{teacher}', '--output', 'out/y', '--rounds', '1'),
    'features': ('visualize.py', 'features', '{image}', *MODEL),
    'kernels': ('visualize.py', 'kernels', *MODEL),
    'receptive field': ('visualize.py', 'erf', *MODEL),
    'predictions': ('visualize.py', 'predictions', *MODEL),
    'activation map': ('visualize.py', 'cam', '{image}', *MODEL),
    'images of laws': ('draw_laws.py', *MODEL, '--out', 'images'),
    'new config': ('new_config.py', '--task', 'cls', '--data', '.', '--checkpoint', 'bad.pth', '--arch', 'm0'),
    'named model of timm': ('validate_reparam.py', 'timm/repvit_m0_9', '--options', 'checkpoint_path=bad.pth'),
    'named config': ('validate_reparam.py', '{teacher}', '--operation', 'consistency'),
    'complexity': ('complexity.py', '{teacher}'),
}
# Tools that speak of checkpoints or pickles and are tried elsewhere, or read none.
ELSEWHERE = {
    'demo.py': 'test_demos_trust_no_training',
    'demo_reparam.py': 'test_demos_trust_no_training',
    'demo_app.py': 'its models come from repnext_mm.apis.build.build_model, as those of fuse do',
    'profile_backbone.py': 'random weights',
}

# timm's words; and tools/complexity.py builds without numbers, where no file at all is read
SAID = ('could run code', 'weights_only', 'eights only', 'on device "meta"')


# The others go through the same functions.
SLOW = {
    'train, load_from',
    'train, backbone',
    'train, whole model',
    'train, teacher of mmdet',
    'train, other runner',
    'test, detector',
    'test, segmentor',
    'test, teacher of mmdet',
    'infer, detector',
    'benchmark, teacher of mmdet',
    'predictions',
    'activation map',
    'receptive field',
    'named config',
    'fuse',
}


@pytest.mark.parametrize(
    'case', [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in REFUSALS]
)
def test_no_tool_executes_a_weight_file(case, here, folder, monkeypatch):
    tool, *words = REFUSALS[case]
    names = {path.stem: path for path in folder.iterdir()}
    said = run(tool, *(word.format(**names) if '{' in word else word for word in words), monkeypatch=monkeypatch)
    assert not (here / 'trace').exists()
    assert any(word in said for word in SAID), said
    assert len(said.splitlines()) == 1
    assert not list(here.rglob('out.*'))


def test_inspecting_names_what_a_file_asks_for(here, monkeypatch, capsys):
    assert run('checkpoint.py', 'inspect', 'bad.pth', monkeypatch=monkeypatch) == ''
    assert f'could run code: {os.mkdir.__module__}.mkdir' in capsys.readouterr().out
    assert not (here / 'trace').exists()


def test_no_tool_is_forgotten():
    speaking = {
        path.name
        for path in (ROOT / 'tools').glob('*.py')
        if path.name not in ('check_env.py', 'setup_env.py')
        and any(word in path.read_text() for word in ('checkpoint', 'pickle', '--config', 'init_cfg', "'config'"))
    }
    assert speaking - {words[0] for words in REFUSALS.values()} - ELSEWHERE.keys() == set()


def test_a_resume_that_finds_its_file_executes_nothing(here, folder, monkeypatch):
    (here / 'run').mkdir()
    shutil.move(here / 'bad.pth', here / 'run' / 'epoch_1.pth')
    (here / 'run' / 'last_checkpoint').write_text(str(here / 'run' / 'epoch_1.pth'))
    said = run('train.py', folder / 'cls.py', '--work-dir', 'run', '--resume', monkeypatch=monkeypatch)
    assert not (here / 'trace').exists()
    assert len(said.splitlines()) <= 1


@pytest.mark.parametrize('module', ['run', 'reparam'])
def test_demos_trust_no_training(module, here, folder, monkeypatch):
    """A training that is found finished in the working folder may be a stranger's."""
    from repnext_mm.lab.demo import folding as reparam
    from repnext_mm.lab.demo import run as run_module

    part = {'run': run_module, 'reparam': reparam}[module]
    monkeypatch.setattr(part, 'trained', lambda *args, **options: (here / 'bad.pth', 0.0))
    call = {
        'run': partial(run_module.run_demo, folder / 'cls.py', work_dir=here / 'demo'),
        'reparam': partial(
            reparam.run_reparam_demo,
            {'a': folder / 'cls.py'},
            work_dirs={'a': here},
            out_dir=here,
            data_root=str(folder / 'digits'),
        ),
    }[module]
    with pytest.raises(ValueError, match='could run code'):
        call()
    assert not (here / 'trace').exists()


def test_timm_executes_nothing(here):
    import timm

    import repnext_mm.timm_models  # noqa: F401

    with pytest.raises(Exception, match='[Ww]eights.only'):
        timm.create_model('repnext_m0', checkpoint_path='bad.pth')
    assert not (here / 'trace').exists()


@pytest.mark.parametrize('stage', ['train', 'test'])
def test_annotations_are_not_unpickled(stage, here, folder, monkeypatch):
    """mmengine reads annotations by their suffix, and has a reader for pickles."""
    (here / 'list.pkl').write_bytes(pickle.dumps({'metainfo': {}, 'data_list': Canary(here / 'trace')}))
    (here / 'pickled.py').write_text(
        f"_base_ = '{folder}/det.py'\n"
        "stock = dict(_delete_=True, type='BaseDetDataset', ann_file='list.pkl', pipeline=[])\n"
        'train_dataloader = dict(dataset=stock)\ntest_dataloader = dict(dataset=stock)\n'
    )
    state = model_of(folder / 'det.py').state_dict()
    torch.save({'state_dict': state}, 'good.pth')
    words = ('train.py', 'pickled.py') if stage == 'train' else ('test.py', 'pickled.py', 'good.pth')
    said = run(*words, monkeypatch=monkeypatch)
    assert not (here / 'trace').exists()
    assert 'could run code' in said
    assert len(said.splitlines()) == 1


def test_cifar_is_not_unpickled_unless_it_is_the_published_one(here, monkeypatch):
    """Its files are pickles; their MD5 sums are compared before a run, and by mmpretrain before it reads them."""
    base = here / 'cifar' / 'cifar-100-python'
    base.mkdir(parents=True)
    for name in ('train', 'test', 'meta'):
        (base / name).write_bytes(pickle.dumps(Canary(here / 'trace')))
    options = {'data_root': str(here / 'cifar')}
    with pytest.raises(ValueError, match='are not the published ones'):
        prepare_training(ROOT / 'configs/repnext_m0_cifar100.py', work_dir='run', options=options)
    monkeypatch.setattr(apis_train, 'check_class_counts', lambda config, stages: None)
    config = prepare_training(ROOT / 'configs/repnext_m0_cifar100.py', work_dir='run', options=options)
    with pytest.raises(ValueError, match='Cannot find CIFAR100'):
        run_training(config)
    assert not (here / 'trace').exists()


@pytest.fixture(scope='module')
def trained(folder):
    """A checkpoint of one epoch, as our own training writes it."""
    run_training(prepare_training(folder / 'cls.py', work_dir=str(folder / 'trained')))
    return folder / 'trained' / 'epoch_1.pth'


@pytest.mark.parametrize('runner', ['Runner', pytest.param('FlexibleRunner', marks=pytest.mark.slow)])
def test_a_config_inside_a_checkpoint_is_not_run(runner, here, folder, trained):
    """mmengine runs `meta.config`, which is Python, when it resumes: no pickle is needed for that attack."""
    content = dict(read_checkpoint(trained))
    content['meta'] = {**content['meta'], 'config': f'import os\nos.mkdir({str(here / "trace")!r})\n'}
    torch.save(content, 'plain.pth')
    options = {'train_cfg.max_epochs': 2, 'runner_type': runner}
    run_training(prepare_training(folder / 'cls.py', work_dir='run', resume='plain.pth', options=options))
    assert (here / 'run' / 'epoch_2.pth').is_file()
    assert not (here / 'trace').exists()


def test_a_checkpoint_cannot_have_files_removed(here, folder, trained):
    """mmengine removes the previous best checkpoint: a path that the resumed file names, be it a folder."""
    (here / 'thesis').mkdir()
    (here / 'thesis' / 'chapter.tex').write_text('text')
    content = dict(read_checkpoint(trained))
    info = {
        **content['message_hub']['runtime_info'],
        'best_score': -1.0,
        'best_ckpt': str(here / 'thesis'),
        'last_ckpt': str(here / 'thesis'),
        'keep_ckpt_ids': ['/../../thesis', '../../thesis', 1, 1, 1],
    }
    kept = {**content['message_hub']['resumed_keys'], **dict.fromkeys(info, True)}
    content['message_hub'] = {**content['message_hub'], 'runtime_info': info, 'resumed_keys': kept}
    torch.save(content, 'plain.pth')
    best = {'save_best': 'accuracy/top1', 'rule': 'greater'}
    options = {'train_cfg.max_epochs': 2, **{f'default_hooks.checkpoint.{key}': value for key, value in best.items()}}
    run_training(prepare_training(folder / 'cls.py', work_dir='run', resume='plain.pth', options=options))
    assert list((here / 'run').glob('best_*'))  # there was a better one, so that the previous one had to go
    assert (here / 'thesis' / 'chapter.tex').is_file()
