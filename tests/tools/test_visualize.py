"""tools/visualize.py as a user runs it."""

from __future__ import annotations

import runpy
import sys

import cv2
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from repnext_mm.apis import load_config
from repnext_mm.data.scene import compose_scene
from repnext_mm.lab.draw import cam
from tests.tools.running import ROOT

TOOL = str(ROOT / 'tools/visualize.py')


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the tool in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr('sys.argv', [TOOL, *map(str, words)])
        runpy.run_path(TOOL, run_name='__main__')

    return call


@pytest.fixture
def image(tmp_path):
    cv2.imwrite(str(tmp_path / 'scene.jpg'), compose_scene(split='val', index=0).image[..., ::-1])
    return tmp_path / 'scene.jpg'


def test_random_weights_need_no_config(run, image, tmp_path, capsys):
    run('features', image, '--block', 'stages.1.blocks.0')
    run('kernels', '--stages', '0')
    run('erf', '--count', '1', '--size', '64', '--out', 'e.png')
    assert 'wrote work_dirs/visualize/kernels.png' in capsys.readouterr().out
    for name in ('work_dirs/visualize/features.png', 'work_dirs/visualize/kernels.png', 'e.png'):
        assert cv2.imread(str(tmp_path / name)).std() > 5


def test_design(run, tmp_path, capsys):
    run('design', '--arch', 'm0', '--out', 'figures')
    names = [f'figures/design_{name}.png' for name in ('architecture', 'equivalent', 'transforms')]
    assert capsys.readouterr().out.split('\n')[:3] == [f'wrote {name}' for name in names]
    assert all(cv2.imread(str(tmp_path / name)).std() > 5 for name in names)


@pytest.mark.parametrize(
    'task', ['mask_rcnn_repnext_m0_digits', 'semantic_fpn_repnext_m0_digits', 'repnext_m0_digits_cls']
)
def test_predictions(task, run, tmp_path):
    path = ROOT / f'configs/{task}.py'
    overrides = {'data_root': str(tmp_path / 'data')}
    if 'cls' not in task:
        overrides['test_dataloader.dataset.scenes'] = {'train': 1, 'val': 3}
    config = load_config(path, options=overrides)
    init_default_scope(config.default_scope)
    torch.save({'state_dict': MODELS.build(config.model).state_dict()}, tmp_path / 'weights.pth')
    words = [f'data_root={overrides["data_root"]}']
    if 'cls' not in task:
        words += ['test_dataloader.dataset.scenes.train=1', 'test_dataloader.dataset.scenes.val=3']
    run(
        'predictions',
        '--config',
        path,
        '--checkpoint',
        'weights.pth',
        '--count',
        2,
        '--out',
        'sheet.png',
        '--cfg-options',
        *words,
    )
    assert cv2.imread(str(tmp_path / 'sheet.png')).std() > 5


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (('features', 'nowhere.png'), "error: image 'nowhere.png' does not exist"),
        (('kernels', '--arch', 'm9'), "error: unknown arch 'm9'"),
        (('design', '--arch', 'm0e'), 'error: RepNeXt-M0E is a single-branch equivalent'),
        (('kernels', '--config', 'a.py'), 'error: give a config and a checkpoint together, or neither'),
        (('erf', '--count', '0'), 'error: 0 images of 224 pixels'),
        (('predictions',), 'error: predictions need --config and --checkpoint'),
        (('predictions', '--config', 'a.py', '--checkpoint', 'b', '--count', '0'), 'error: count=0: draw at least 1'),
    ],
    ids=['image', 'arch', 'equivalent', 'config', 'count', 'predictions', 'sheet'],
)
def test_errors_are_one_sentence(run, words, message):
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert str(stopped.value).startswith(message)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pytorch_grad_cam', None)
    with pytest.raises(ValueError, match=r"need the package grad-cam .*: pip install 'repnext_mm\[cam\]'"):
        cam.grad_cam()
