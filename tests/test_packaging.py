"""The wheel: configs and tools inside it the MIM way, no mm* package demanded, nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = (
    'repnext_mm',
    'configs',
    'tools',
    'setup.py',
    'pyproject.toml',
    'MANIFEST.in',
    'README.md',
    'LICENSE',
    'model-index.yml',
)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, with leftovers of an earlier build beside it; the clone stays clean."""
    clone = tmp_path_factory.mktemp('clone')
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns('__pycache__'))
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, clone)
    for stray in ('tests/__init__.py', 'work_dirs/run/last.pth', 'build/lib/repnext_mm/.mim/configs/gone.py'):
        (clone / stray).parent.mkdir(parents=True)
        (clone / stray).touch()
    command = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '-w', 'out', '.']
    env = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK='1')
    done = subprocess.run(command, cwd=clone, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (clone / 'out').glob('*.whl')
    return zipfile.ZipFile(file)


def test_configs_and_tools_lie_where_mim_looks(wheel: zipfile.ZipFile) -> None:
    inside = {name for name in wheel.namelist() if name.startswith('repnext_mm/.mim/')}
    here = {
        f'repnext_mm/.mim/{path.relative_to(ROOT).as_posix()}'
        for folder in ('configs', 'tools')
        for path in (ROOT / folder).rglob('*')
        if path.is_file() and '__pycache__' not in path.parts and path.name != 'setup_env.py'
    }
    if (ROOT / 'model-index.yml').exists():
        here.add('repnext_mm/.mim/model-index.yml')
    assert inside == here
    assert 'repnext_mm/.mim/tools/check_env.py' in inside


def test_every_module_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    inside = {name for name in wheel.namelist() if not name.startswith('repnext_mm/.mim/')}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'repnext_mm').rglob('*.py')}
    assert modules <= inside
    assert {name.split('/')[0] for name in inside} == {'repnext_mm', f'repnext_mm-{version()}.dist-info'}


def test_metadata(wheel: zipfile.ZipFile) -> None:
    metadata = Parser().parsestr(wheel.read(f'repnext_mm-{version()}.dist-info/METADATA').decode())
    requirements = metadata.get_all('Requires-Dist') or []
    hard = [line for line in requirements if 'extra ==' not in line]
    assert sorted(hard) == ['numpy', 'torch>=2.1']
    assert metadata['Requires-Python'] == '>=3.10'
    assert metadata['License-Expression'] == 'Apache-2.0'
    lanes = {'onedl', 'openmmlab'}
    phones = {'executorch', 'litert', 'mnn', 'ncnn'}
    extras = {'cam', 'completion', 'demo', 'dev', 'digits', 'export'} | lanes | phones
    assert set(metadata.get_all('Provides-Extra') or []) == extras
    for lane, package in (('onedl', 'onedl-mmdetection'), ('openmmlab', 'mmdet')):
        assert any(line.startswith(f'{package}>=') and f'"{lane}"' in line.replace("'", '"') for line in requirements)
    assert metadata['Description-Content-Type'] == 'text/markdown'
    assert metadata['Version'] == version()
    assert any(url.startswith('Paper, ') for url in metadata.get_all('Project-URL') or [])


def test_the_command_is_installed(wheel: zipfile.ZipFile) -> None:
    points = wheel.read(f'repnext_mm-{version()}.dist-info/entry_points.txt').decode()
    assert points.split() == ['[console_scripts]', 'repnext', '=', 'repnext_mm.cli:main']


def version() -> str:
    line = (ROOT / 'repnext_mm' / 'version.py').read_text().strip().splitlines()[-1]
    return line.split("'")[1]
