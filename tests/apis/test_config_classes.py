"""Names of classes, wherever a checkpoint or a config says them."""

import pytest

from repnext_mm.apis import load_config
from repnext_mm.apis.config import classes_in_checkpoint, classes_of_config
from repnext_mm.data.scene_files import CLASSES
from tests.tools.running import ROOT


@pytest.mark.parametrize(
    ('content', 'found'),
    [
        (
            {'meta': {'dataset_meta': {'classes': ('a', 'b'), 'palette': [(0, 0, 0)] * 2}}},
            {'classes': ('a', 'b'), 'palette': [(0, 0, 0)] * 2},
        ),
        ({'meta': {'CLASSES': ['a'], 'PALETTE': None}}, {'classes': ['a'], 'palette': None}),
        ({'meta': {'CLASSES': 'ab'}}, {}),
        ({'meta': {'dataset_meta': {'palette': []}}}, {}),
        ({'meta': {'epoch': 1}}, {}),
        ({'meta': 'ab'}, {}),
        ({'state_dict': {}}, {}),
    ],
    ids=['mmengine', 'before it', 'text', 'color alone', 'another meta', 'no meta', 'weights alone'],
)
def test_what_a_checkpoint_says(content, found):
    assert classes_in_checkpoint(content) == found


@pytest.mark.parametrize('task', ['mask_rcnn', 'semantic_fpn'])
def test_what_a_config_says_without_its_data(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(ROOT / f'configs/{task}_repnext_m0_digits.py', work_dir=str(tmp_path))
    found = classes_of_config(config)['classes']
    assert tuple(found) in (CLASSES, ('background', *CLASSES))
    assert not list(tmp_path.iterdir())  # it made no scenes to answer
