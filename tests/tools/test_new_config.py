"""tools/new_config.py as a user runs it, from a foreign folder: what it writes trains and tests."""

from __future__ import annotations

import json

import pytest

from repnext_mm.data import SceneSet, ensure_digits, ensure_scenes
from tests.tools.running import ROOT, metrics, options, run_tool

TOOL = ROOT / 'tools/new_config.py'
DIGITS = ','.join(f'digit {digit}' for digit in range(10))
WORKERS = options(train_dataloader__num_workers=0, val_dataloader__num_workers=0, test_dataloader__num_workers=0)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('foreign')
    ensure_scenes(folder / 'scenes', SceneSet(train=4, val=2, size=128))
    return folder


def train_and_test(root, config, checkpoint):
    run_tool(ROOT / 'tools/train.py', config, *WORKERS, cwd=root)
    return run_tool(ROOT / 'tools/test.py', config, root / f'work_dirs/{config[:-3]}/{checkpoint}', *WORKERS, cwd=root)


@pytest.mark.slow
def test_a_segmentor(root):
    output = run_tool(
        TOOL,
        '--task',
        'seg',
        '--data',
        'scenes',
        '--classes',
        f'background,{DIGITS}',
        '--arch',
        'm0',
        '--size',
        '64',
        '--epochs',
        '2',
        cwd=root,
    )
    assert 'found 0 errors' in output
    output = train_and_test(root, 'semantic_fpn_repnext_m0_scenes.py', 'iter_2.pth')
    assert 'norms 53 -> 0' in output
    assert metrics(output, 'mIoU') >= 0
    assert 'digit 9' in output


def test_faults_are_reported_and_nothing_is_written(root):
    output = run_tool(
        TOOL, '--task', 'seg', '--data', 'scenes', '--classes', DIGITS, '--out', 'faulty.py', cwd=root, expect=1
    )
    assert 'error: label value 10, with 10 classes from 0' in output
    assert 'error: nothing was written' in output
    assert 'Traceback' not in output
    assert not (root / 'faulty.py').exists()


@pytest.mark.slow
@pytest.mark.parametrize('boxes_only', [False, True], ids=['masks', 'boxes'])
def test_a_detector(root, boxes_only, tmp_path):
    data = 'scenes'
    if boxes_only:
        data = tmp_path / 'boxes'
        ensure_scenes(data, SceneSet(train=4, val=2, size=128))
        drop_masks(data)
    name = 'boxes.py' if boxes_only else 'masks.py'
    one_class = ['--classes', 'digit 2'] if boxes_only else []
    run_tool(
        TOOL,
        '--task',
        'det',
        '--data',
        data,
        '--arch',
        'm0e',
        '--size',
        '64',
        '--epochs',
        '1',
        '--out',
        name,
        *one_class,
        cwd=root,
    )
    output = train_and_test(root, name, 'epoch_1.pth')
    assert '-> 0' in output
    assert metrics(output, 'coco/bbox_mAP') >= -1
    assert ('segm_mAP' in output) != boxes_only


@pytest.mark.slow
def test_a_classifier(root):
    ensure_digits(root / 'digits', size=32)
    run_tool(
        TOOL,
        '--task',
        'cls',
        '--data',
        'digits',
        '--arch',
        'm0',
        '--size',
        '32',
        '--epochs',
        '1',
        '--batch',
        '700',
        cwd=root,
    )
    output = train_and_test(root, 'repnext_m0_digits.py', 'epoch_1.pth')
    assert metrics(output, 'accuracy/top1') >= 0


def drop_masks(data):
    for path in (data / 'annotations').glob('*.json'):
        content = json.loads(path.read_text())
        for entry in content['annotations']:
            del entry['segmentation']
        path.write_text(json.dumps(content))
