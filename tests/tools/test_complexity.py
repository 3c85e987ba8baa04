"""tools/complexity.py as a user runs it."""

from __future__ import annotations

import json
import re

from tests.tools.running import ROOT, run_tool

TOOL = ROOT / 'tools/complexity.py'


def test_archs_as_a_table_and_as_json(tmp_path):
    shown = re.sub(' +', ' ', run_tool(TOOL, '--arch', 'm0', 'm0e', '--json', 'counts.json', cwd=tmp_path))
    assert 'One image of 224x224' in shown
    assert '| m0 | branches | 2,073,200 | 2,716,480 | 402,340,960 | 402,980,960 | 55 |' in shown
    assert '| m0 | default | 2,007,080 | 2,328,080 | 387,217,600 | 387,537,600 | 0 |' in shown
    assert '| m0e | keep_norms |' in shown
    written = json.loads((tmp_path / 'counts.json').read_text())
    assert written['shape'] == [224, 224]
    assert written['counts']['m0']['default']['classifier'] == {'parameters': 2328080, 'macs': 387537600, 'norms': 0}


def test_whole_model(tmp_path):
    config = ROOT / 'configs/mask_rcnn_repnext_m0_coco.py'
    shown = re.sub(' +', ' ', run_tool(TOOL, config, '--shape', '64', '96', '--forms', 'default', cwd=tmp_path))
    header = next(line for line in shown.splitlines() if line.startswith('|'))
    assert 'rpn_head MACs | bbox_head MACs | mask_head MACs | total MACs | total norms' in header
    rows = [line.split(' | ')[:2] for line in shown.splitlines() if line.startswith('| mask_rcnn')]
    assert [form for _, form in rows] == ['branches', 'train', 'default']


def test_errors_are_one_sentence(tmp_path):
    shown = run_tool(TOOL, 'nowhere.py', cwd=tmp_path, expect=1)
    assert "error: config 'nowhere.py' does not exist" in shown
    shown = run_tool(TOOL, '--arch', 'm9', cwd=tmp_path, expect=1)
    assert "error: unknown arch 'm9'" in shown
    assert 'Traceback' not in shown
