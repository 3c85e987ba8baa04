"""tools/export.py as a user runs it, from another folder."""

from __future__ import annotations

import re

import torch

from repnext_mm.export import open_exported
from tests.conftest import worst_error
from tests.export.networks import TINY, tiny
from tests.tools.running import ROOT, run_tool

TOOL = ROOT / 'tools/export.py'


@torch.no_grad()
def test_config_and_checkpoint_with_the_fastest_form(tmp_path):
    (tmp_path / 'net.py').write_text(f"model = dict(type='RepNeXt', arch={TINY})\n")
    network = tiny()
    torch.save({'state_dict': network.state_dict()}, tmp_path / 'net.pth')
    shown = run_tool(
        TOOL,
        'net.py',
        'net.pt',
        '--checkpoint',
        'net.pth',
        '--form',
        'auto',
        '--shape',
        '1',
        '3',
        '64',
        '64',
        cwd=tmp_path,
    )
    chosen = re.search(r'auto: (\w+) is the fastest of .*default \d+\.\d+ ms \(p10 .*, n 30\)', shown)[1]
    line = re.search(
        rf'wrote net\.pt \(torchscript, 0\.\d MB\), form {chosen}, relative error in TorchScript at '
        r'1x3x64x64 and 2x3x79x41: (.*)',
        shown,
    )
    errors = dict(each.split() for each in line[1].split(', '))
    assert list(errors) == ['stage_1', 'stage_2', 'stage_3', 'stage_4']
    assert max(map(float, errors.values())) < 1e-5
    assert 'random' not in shown
    image = torch.randn(1, 3, 47, 33)
    outputs = open_exported(tmp_path / 'net.pt', format='torchscript')(image)
    assert max(map(worst_error, outputs, network(image))) < 1e-5


def test_arch_alone_and_errors(tmp_path):
    shown = run_tool(TOOL, 'm0', 'm0.pt', '--shape', '1', '3', '64', '64', '--static', cwd=tmp_path)
    assert 'weights: random, since no --checkpoint was given' in shown
    assert 'wrote m0.pt (torchscript, 8.' in shown
    shown = run_tool(TOOL, 'm0', 'm0.caffemodel', cwd=tmp_path, expect=1)
    assert "error: 'm0.caffemodel' does not name its format" in shown
    assert 'Traceback' not in shown
    assert {file.name for file in tmp_path.iterdir()} == {'m0.pt'}
