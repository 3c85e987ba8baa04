"""tools/demo.py and tools/make_digit_scenes.py, as a newcomer runs them."""

import json
import re

import cv2
import pytest

from repnext_mm.training.bfloat16 import trains_faster
from tests.conftest import fast
from tests.tools.running import ROOT, run_tool

SCORES = {
    'detection': ['box AP', 'mask AP'],
    'segmentation': ['mIoU of the ten digits'],
    'classification': ['top-1 accuracy'],
}


@pytest.mark.parametrize('task', fast(SCORES, 'detection'))
def test_demo_runs_from_nothing_and_trains_once(tmp_path, task):
    output = run_tool(ROOT / 'tools/demo.py', task, '--quick', cwd=tmp_path)
    work_dir = tmp_path / f'work_dirs/demo_{task}_quick'
    assert ('training in bfloat16' in output) == (task == 'detection' and trains_faster())
    report = json.loads((work_dir / 'table.json').read_text())
    assert list(report['rows']) == [
        *SCORES[task],
        'backbone parameters',
        'backbone norms',
        'backbone latency, ms',
    ]
    assert report['rows']['backbone parameters'] == [2073200, 2007080]
    assert report['rows']['backbone norms'] == [53, 0]
    assert cv2.imread(str(work_dir / 'sheet.png')).shape[1] == 1320
    for line in ('Checkpoint', 'Table', 'Images'):
        path = re.search(rf'^{line}: (.*)$', output, re.MULTILINE)[1]
        assert not path.startswith('/')
        assert (tmp_path / path).is_file()
    trained = (work_dir / 'trained.json').stat().st_mtime_ns
    if task != 'detection':  # they are slow anyway
        run_tool(ROOT / 'tools/demo.py', task, '--quick', cwd=tmp_path)
        assert (work_dir / 'trained.json').stat().st_mtime_ns == trained


def test_scenes_are_made_once_and_named(tmp_path):
    command = (ROOT / 'tools/make_digit_scenes.py', 'scenes', '--train', '2', '--val', '1')
    assert 'scenes: made' in run_tool(*command, cwd=tmp_path)
    assert 'scenes: was there already' in run_tool(*command, cwd=tmp_path)
    output = run_tool(*command, '--seed', '3', cwd=tmp_path, expect=1)
    assert output.strip().splitlines()[-1] == (
        'error: scenes holds other digit scenes (seed is 0 instead of 3): remove scenes, or set another data_root'
    )
