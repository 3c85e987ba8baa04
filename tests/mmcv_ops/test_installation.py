"""The file that puts our operators in the place of mmcv's compiled ones: only where there are none, and away again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import pytest

import repnext_mm
from repnext_mm.mmcv_ops import __main__, install, remove, status

ROOT = Path(repnext_mm.__file__).parents[1]


@pytest.fixture
def mmcv(tmp_path, monkeypatch) -> Path:
    """The folder of an mmcv without operators, which `import mmcv` would find."""
    folder = tmp_path / 'mmcv'
    folder.mkdir()
    (folder / '__init__.py').touch()
    monkeypatch.delitem(sys.modules, 'mmcv', raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def compiled_file(mmcv: Path) -> Path:
    file = mmcv / f'_ext{EXTENSION_SUFFIXES[0]}'
    file.write_text('compiled')
    return file


def test_install_and_remove(mmcv):
    file = mmcv / '_ext.py'
    assert status() == ('none', file)
    assert install() == install() == status() == ('torchvision', file)
    assert len(file.read_text().splitlines()) == 2
    assert remove() == remove() == status() == ('none', file)
    assert [*mmcv.iterdir()] == [mmcv / '__init__.py']


def test_compiled_operators_stay(mmcv):
    file = compiled_file(mmcv)
    with pytest.raises(FileExistsError, match='has compiled operators, which need no help; .* --set-aside'):
        install()
    assert remove() == status() == ('compiled', file)
    assert file.read_text() == 'compiled' and not (mmcv / '_ext.py').exists()


def test_compiled_operators_of_another_torch_are_put_aside_and_brought_back(mmcv):
    file = compiled_file(mmcv)
    assert install(set_aside=True).kind == 'torchvision'
    assert not file.exists()
    assert remove() == ('compiled', file)
    assert file.read_text() == 'compiled' and not (mmcv / '_ext.py').exists()


def test_compiled_operators_of_another_python_do_not_count(mmcv):
    (mmcv / '_ext.cpython-27-nowhere.so').touch()
    assert install().kind == 'torchvision'


def test_a_file_of_somebody_else_stays(mmcv):
    file = mmcv / '_ext.py'
    file.write_text('def nms(): pass\n')
    with pytest.raises(FileExistsError, match='is not from repnext_mm: remove it yourself'):
        install()
    assert remove() == status() == ('foreign', file)
    assert file.read_text() == 'def nms(): pass\n'


def test_without_mmcv(monkeypatch):
    monkeypatch.delitem(sys.modules, 'mmcv', raising=False)
    monkeypatch.setattr('repnext_mm.mmcv_ops.installation.find_spec', lambda name: None)
    for act in (install, remove, status):
        with pytest.raises(ModuleNotFoundError, match='has no mmcv: install one first'):
            act()


@pytest.mark.parametrize(
    'verb, code, says',
    [
        ('status', 0, 'mmcv has no operators'),
        ('install', 0, 'run on torchvision and torch'),
        ('status', 0, 'run on torchvision and torch'),
        ('remove', 0, 'mmcv has no operators'),
    ],
)
def test_command(mmcv, monkeypatch, capsys, verb, code, says):
    if (verb, says) in (('status', 'run on torchvision and torch'), ('remove', 'mmcv has no operators')):
        install()
    monkeypatch.setattr(sys, 'argv', ['mmcv_ops', verb])
    assert __main__.main() == code
    assert says in capsys.readouterr().out


def test_command_that_refuses(mmcv, monkeypatch, capsys):
    compiled_file(mmcv)
    monkeypatch.setattr(sys, 'argv', ['mmcv_ops', 'install'])
    assert __main__.main() == 1
    assert capsys.readouterr().err.startswith('error: ')


def run(code: str, *folders: Path) -> str:
    result = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, [*folders, ROOT]))},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_torch_and_torchvision_are_enough(mmcv):
    """Neither mmengine nor mmcv nor any of the rest of this package is needed, so there is no cycle of imports."""
    install()
    said = run(
        """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.startswith('mmengine') else found(name, *rest)
sys.modules['mmengine'] = None
import mmcv._ext as operators, torch
assert all(hasattr(operators, name) for name in ('nms', 'roi_align_forward', 'knn_forward', 'of_next_year'))
assert not hasattr(operators, '__path__') and not hasattr(operators, '_private')
print(operators.nms(torch.tensor([[0., 0, 2, 2], [0, 0, 2, 2]]), torch.tensor([.5, .6]), iou_threshold=0.5, offset=0))
print(*sorted(name for name in sys.modules if name.startswith('repnext_mm.') and 'mmcv_ops' not in name))
""",
        mmcv.parent,
    )
    assert said.splitlines() == ['tensor([1])', 'repnext_mm._moved repnext_mm.errors repnext_mm.version']


def test_what_is_not_served_says_so_when_it_is_called():
    from repnext_mm.mmcv_ops import operators

    with pytest.raises(NotImplementedError, match="operator 'knn_forward' is not among those .* compile mmcv, .* pip"):
        operators.knn_forward(1, k=2)


@pytest.mark.slow
def test_mmcv_mmdet_mmseg_and_mmpretrain_import_on_them(tmp_path, monkeypatch):
    """The Python files of the installed mmcv, without its compiled module."""
    pytest.importorskip('mmdet')
    shutil.copytree(
        Path(find_spec('mmcv').origin).parent,
        tmp_path / 'mmcv',
        ignore=shutil.ignore_patterns('csrc', '_ext*', '__pycache__'),
    )
    run(
        """
import subprocess, sys
def fails(): return subprocess.run([sys.executable, '-c', 'import mmcv.ops'], capture_output=True, text=True).stderr
assert "No module named 'mmcv._ext'" in fails()
from repnext_mm.mmcv_ops import install
install()
assert not fails()
import mmcv.ops, mmdet.models, mmseg.models, mmpretrain.models, repnext_mm
from mmcv.utils import collect_env
assert 'torchvision' in collect_env()['MMCV Compiler']
""",
        tmp_path,
    )
