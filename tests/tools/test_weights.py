"""`repnext weights` and `repnext publish` as a user calls them, with the authors' page on 127.0.0.1."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from repnext_mm import cli
from repnext_mm.checkpoints import PUBLISHED
from repnext_mm.checkpoints.published import MIRROR
from tests.checkpoints.files import typed
from tests.tools.running import ROOT, run_tool
from tests.weight_server import serving

NAME = 'repnext_m0_distill_300e'


@pytest.fixture
def release(tmp_path, monkeypatch, golden_state):
    torch.save({'model': typed(golden_state)}, tmp_path / 'served.pth')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch_home'))
    with serving((tmp_path / 'served.pth').read_bytes()) as server:
        server.files[f'/{NAME}.pth'] = server.content
        monkeypatch.setenv(MIRROR, server.address)
        yield server


def said(capsys, *words: str, expect: int = 0) -> str:
    try:
        cli.main([*words])
        status = 0
    except SystemExit as stopped:
        status = stopped.code
    shown = capsys.readouterr().out
    assert status == expect, shown
    return shown


def test_list_download_verify(release, capsys):
    shown = said(capsys, 'weights')
    assert all(name in shown for name in PUBLISHED)
    assert re.search(rf'\| {NAME} +\| classifier, .*distilled +\| top-1 74\.2 +\| +\| +\|', shown)
    assert said(capsys, 'weights', 'verify') == ''
    assert said(capsys, 'weights', 'verify', NAME, expect=1) == f'{NAME} is not here\n'
    path = Path(said(capsys, 'weights', 'download', NAME, f'pretrain/{NAME}.pth').split()[-1])
    assert path.read_bytes() == release.content
    assert release.asked == [f'/{NAME}.pth']
    assert re.search(
        rf'\| {NAME} +\| .* \| +{len(release.content) / 1e6:.1f} \| .*{path.name} \|', said(capsys, 'weights', 'list')
    )
    assert said(capsys, 'weights', 'verify') == f'{path}: whole\n'
    path.write_bytes(release.content[:-9])
    assert 'has changed since it was first used' in said(capsys, 'weights', 'verify', expect=1)
    assert 'changed: verify it' in said(capsys, 'weights')
    Path('pretrain').mkdir()
    Path(f'pretrain/{NAME}.pth').write_bytes(release.content[:-9])
    assert 'not a whole weight file' in said(capsys, 'weights', 'verify', expect=1)
    assert (
        said(
            capsys,
            'weights',
            'verify',
            'repnext_m0_distill',
            expect=f"error: 'repnext_m0_distill' is not among "
            f"the published names, or the published '{NAME}': repnext weights lists them",
        )
        == ''
    )


def test_the_scripts(release):
    shown = run_tool(ROOT / 'tools/weights.py', 'download', NAME, cwd=Path.cwd())
    assert '100%' in shown  # the progress bar
    assert shown.rstrip().endswith(f'{NAME}.pth')
    shown = run_tool(ROOT / 'tools/publish.py', NAME, 'out', cwd=Path.cwd())
    assert shown.splitlines() == ['out/README.md', 'out/config.json', 'out/model.safetensors']
    shown = run_tool(ROOT / 'tools/checkpoint.py', 'inspect', 'out/model.safetensors', cwd=Path.cwd())
    assert 'holds: classifier, RepNeXt m0, form train' in shown
