"""tools/checkpoint.py as a user runs it."""

from __future__ import annotations

import os
import re

import torch

from repnext_mm import RepNeXt
from tests.checkpoints import files
from tests.conftest import randomize
from tests.tools.running import ROOT, run_tool

TOOL = ROOT / 'tools/checkpoint.py'


def test_inspect_convert_fuse_compare(tmp_path, golden_state):
    files.timm_saver(tmp_path / 'm0.pth.tar', files.typed(golden_state))
    shown = run_tool(TOOL, 'inspect', 'm0.pth.tar', cwd=tmp_path)
    assert "written by: timm's saver" in shown
    assert 'holds: classifier, RepNeXt m0, form train' in shown
    assert 'averaged (EMA) weights: yes' in shown
    run_tool(TOOL, 'convert', 'm0.pth.tar', 'm0.safetensors', cwd=tmp_path)
    assert '671 tensors are equal, 0 differ' in run_tool(TOOL, 'compare', 'm0.pth.tar', 'm0.safetensors', cwd=tmp_path)

    (tmp_path / 'net.py').write_text("model = dict(type='RepNeXt', arch='m0')\n")
    torch.save({'state_dict': randomize(RepNeXt('m0')).state_dict()}, tmp_path / 'net.pth')
    shown = run_tool(TOOL, 'fuse', 'net.pth', 'net.py', 'fused.pth', '--publish', cwd=tmp_path)
    assert 'parameters 2,073,200 -> 2,007,080, norms 53 -> 0' in shown
    errors = re.search(r'float64: (.*)', shown)[1].split(', ')
    assert len(errors) == 4
    assert max(map(float, errors)) < 1e-12
    published = re.search(r'wrote (fused-[0-9a-f]{8}\.pth) and fused\.py', shown)[1]
    shown = run_tool(TOOL, 'compare', 'net.pth', published, '--configs', 'net.py', 'fused.py', cwd=tmp_path)
    assert max(map(float, re.search(r'float64: (.*)', shown)[1].split(', '))) < 1e-5


class Planted:
    def __reduce__(self):
        return os.system, ('true',)


def test_errors_are_one_sentence(tmp_path):
    torch.save({'model': {'w': torch.ones(1)}, 'args': Planted()}, tmp_path / 'bad.pth')
    assert 'building these could run code: posix.system' in run_tool(TOOL, 'inspect', 'bad.pth', cwd=tmp_path)
    shown = run_tool(TOOL, 'convert', 'bad.pth', 'out.pth', cwd=tmp_path, expect=1)
    assert "error: bad.pth was not read: it asks for 'posix.system'" in shown
    assert 'Traceback' not in shown
    shown = run_tool(TOOL, 'inspect', 'nowhere.pth', cwd=tmp_path, expect=1)
    assert 'error: no weight file at nowhere.pth' in shown
