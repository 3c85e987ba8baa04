"""Two readers of pickles, written apart: what picklescan calls dangerous is refused, and what is read it lets pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from repnext_mm.checkpoints import read_checkpoint, unsafe_globals
from tests.checkpoints import files
from tests.checkpoints.pickles import archived, text
from tests.checkpoints.test_scan import HIDDEN, legacy

scanner = pytest.importorskip('picklescan.scanner')  # not for Python 3.10

HARMLESS: dict[str, Callable[[Path, files.State], Path]] = {
    'published by the authors': files.authors_published,
    'a training of the authors': files.authors_training,
    'saved by timm': files.timm_saver,
}


def dangerous(path: Path) -> list[str]:
    result = scanner.scan_file_path(str(path))
    return [f'{found.module}.{found.name}' for found in result.globals if found.safety is scanner.SafetyLevel.Dangerous]


@pytest.mark.parametrize('written', [archived, legacy], ids=['zip', 'legacy'])
@pytest.mark.parametrize('way', HIDDEN)
def test_what_picklescan_calls_dangerous_is_refused(way, written, tmp_path):
    path = written(tmp_path / 'a.pth', b'\x80\x04}' + text('w') + HIDDEN[way] + b's.')
    assert dangerous(path)
    assert unsafe_globals(path)
    with pytest.raises(ValueError):
        read_checkpoint(path)


@pytest.mark.parametrize('kind', HARMLESS)
def test_what_is_read_is_harmless_to_picklescan(kind, tmp_path):
    state = {'stem.weight': torch.randn(2, 3), 'norm.running_mean': torch.zeros(2), 'count': torch.tensor(3)}
    path = HARMLESS[kind](tmp_path / 'a.pth', state)
    assert read_checkpoint(path)
    assert unsafe_globals(path) == []
    assert dangerous(path) == []
