"""What is published: configs and tools the MIM way, no mm* package demanded, nothing else; wheel and sdist alike."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

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
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with leftovers of an earlier build and of work beside it; the real clone stays clean."""
    clone = tmp_path_factory.mktemp('clone')
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns('__pycache__'))
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, clone)
    for stray in ('tests/__init__.py', 'work_dirs/run/last.pth', 'build/lib/repnext_mm/.mim/configs/gone.py'):
        (clone / stray).parent.mkdir(parents=True)
        (clone / stray).touch()
    return clone


def run_in(folder: Path, *command: str) -> None:
    env = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK='1')
    done = subprocess.run(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def wheel_of(folder: Path) -> zipfile.ZipFile:
    run_in(folder, sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '-w', 'out', '.')
    (file,) = (folder / 'out').glob('*.whl')
    return zipfile.ZipFile(file)


@pytest.fixture(scope='module')
def wheel(clone: Path) -> zipfile.ZipFile:
    return wheel_of(clone)


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
    phones = {'coreai', 'executorch', 'litert', 'mnn', 'ncnn'}
    extras = {'cam', 'coco', 'completion', 'demo', 'dev', 'digits', 'export', 'nncf', 'tensorboard'} | lanes | phones
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


def test_the_sdist_builds_the_same_wheel(clone: Path, wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    build = f'from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})'
    run_in(clone, sys.executable, '-c', build)
    (archive,) = tmp_path.glob('repnext_mm-*.tar.gz')
    with tarfile.open(archive) as files:
        files.extractall(tmp_path, filter='data')
    source = tmp_path / archive.name.removesuffix('.tar.gz')
    assert (source / 'LICENSE').is_file()
    assert not (source / 'work_dirs').exists()
    from_sdist = wheel_of(source)
    assert sorted(from_sdist.namelist()) == sorted(wheel.namelist())


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == version()
    assert citation['preferred-citation']['url'] in (ROOT / 'README.md').read_text()


@pytest.mark.parametrize('name', ['Makefile', '.ci/run', '.ci/package', '.github/workflows/ci.yml'])
def test_tests_that_are_called_by_path_are_there(name: str) -> None:
    for path in re.findall(r'(?<![\w/.])tests/[\w/.]+', (ROOT / name).read_text()):
        assert (ROOT / path).exists(), path


def test_workflows_call_what_is_there() -> None:
    """Continuous integration and releases run scripts and make targets of this clone, under pinned majors."""
    targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    called = set()
    for file in sorted((ROOT / '.github/workflows').glob('*.yml')):
        for job in yaml.safe_load(file.read_text())['jobs'].values():
            for step in job['steps']:
                assert re.fullmatch(r'[\w./-]+@[\w/.]*v\d+', step.get('uses', 'own/step@v1'))
                called.update(re.findall(r'(?:^|\s)(\.ci/\w+|make [a-z-]+)', step.get('run', '')))
    assert {'.ci/run', '.ci/package', 'make env'} <= called
    for each in called:
        if each.startswith('make '):
            assert each.removeprefix('make ') in targets
        else:
            assert os.access(ROOT / each, os.X_OK)
