"""tools/check_env.py on environments that are faked, and broken in every way, without site-packages."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / 'tools' / 'check_env.py'
MODULE = ROOT / 'repnext_mm' / 'cli' / 'check_env.py'
TORCH = """
from types import SimpleNamespace
__version__ = '2.11.0+cpu'
version = SimpleNamespace(cuda=None)
cuda = SimpleNamespace(device_count=lambda: 0, get_device_name=lambda gpu: f'GPU {gpu}')
tensor, ones = list, range
"""
OPS = """
nms = print
get_compiling_cuda_version = lambda: 'not available'
get_compiler_version = lambda: 'GCC 12.2'
"""
NUMPY = '2.4.6' if sys.version_info >= (3, 14) else '2.2.6'  # of the OneDL lane
DISTRIBUTIONS = {
    'pip': '23.2.1',
    'setuptools': '80.10.2',
    'torch': '2.11.0+cpu',
    'torchvision': '0.26.0+cpu',
    'numpy': NUMPY,
    'timm': '1.0.31',
    'onedl_mmengine': '0.10.12',
    'onedl_mmcv': '2.3.6',
    'onedl_mmdetection': '3.5.1',
    'onedl_mmsegmentation': '1.4.2',
    'onedl_mmpretrain': '1.3.6',
    'repnext_mm': '0.1.0',
}


class Fake:
    """A folder of packages that pretend to be the OneDL lane in good order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, version in DISTRIBUTIONS.items():
            self.distribution(name, version)
        self.distribution('torchvision', '0.26.0+cpu', 'Requires-Dist: torch (==2.11.0)\n')
        for name in ('torchvision', 'numpy', 'timm', 'cv2', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'):
            self.module(name, "__version__ = '1.0'")
        for name in ('mmdet', 'mmseg', 'mmpretrain'):
            self.module(f'{name}/models', '')
        self.module('repnext_mm', "__version__ = '0.1.0'")
        self.module('torch', TORCH)
        self.module('mmcv/ops', OPS)

    def module(self, name: str, body: str) -> None:
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / name / '__init__.py').write_text(body)

    def distribution(self, name: str, version: str | None, more: str = '') -> None:
        for old in self.folder.glob(f'{name}-*.dist-info'):
            shutil.rmtree(old)
        if version:
            folder = self.folder / f'{name}-{version}.dist-info'
            folder.mkdir()
            (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}')

    def check(self) -> dict[str, Any]:
        code, text = run(['-S'], ['--json'], self.folder)
        found: dict[str, Any] = json.loads(text)
        assert code == bool(found['problems'])
        for problem in found['problems']:
            assert problem['command'].strip()
            assert '\n' not in problem['command']
        return found

    def only_problem(self) -> tuple[str, str]:
        (problem,) = self.check()['problems']
        return problem['what'], problem['command']


def run(flags: list[str], options: list[str], path: Path) -> tuple[int, str]:
    env = dict(os.environ, PYTHONPATH=str(path))
    done = subprocess.run(
        [sys.executable, *flags, str(SCRIPT), *options],
        capture_output=True,
        text=True,
        env=env,
        stdin=subprocess.DEVNULL,
        cwd=path,
        timeout=120,
    )
    assert 'Traceback' not in done.stderr
    return done.returncode, done.stdout


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def test_healthy(fake: Fake) -> None:
    found = fake.check()
    assert found['problems'] == []
    assert found['lane'] == 'OneDL'
    assert found['packages']['mmcv.ops']['compiler'] == 'GCC 12.2'
    code, text = run(['-S'], [], fake.folder)
    assert code == 0
    assert text.endswith('All is right.\n')


@pytest.mark.parametrize('flags', [['-S'], ['-I', '-S']], ids=' '.join)
def test_empty(flags: list[str], tmp_path: Path) -> None:
    code, text = run(flags, [], tmp_path)
    assert code == 1
    assert re.search(r'^lane +none$', text, re.MULTILINE)
    assert re.search(r'^   \$ make .*env && .*check_env\.py$', text, re.MULTILINE)


@pytest.mark.parametrize(
    'body, said',
    [
        ('raise RuntimeError("wrong driver")', 'wrong driver'),
        ('raise SystemExit(0)', 'SystemExit'),
        ('raise KeyboardInterrupt', 'KeyboardInterrupt'),
        ('import os; os._exit(0)', 'exit code 0'),
        ('import os; os.abort()', 'SIGABRT'),
        ('import os, signal; os.kill(os.getpid(), signal.SIGSEGV)', 'SIGSEGV'),
        ('def broken(:', 'SyntaxError'),
        ('print("<check_env>{"); import os; os.close(1); raise ValueError("stdout is gone")', 'ended Python'),
    ],
)
@pytest.mark.parametrize('module', ['mmcv', 'repnext_mm'])
def test_import_ends_badly(module: str, body: str, said: str, fake: Fake) -> None:
    fake.module(module, body)
    what, command = fake.only_problem()
    assert what.startswith(f'{module} does not import')
    assert said in what
    fix = {'mmcv': 'onedl-mmcv==2.3.6', 'repnext_mm': f'-e {ROOT}'}
    assert fix[module] in command


@pytest.mark.parametrize(
    'transformers, body, command',
    [
        ('5.17.0', 'class Bert(None): pass', 'install "transformers<5"'),
        ('4.57.6', 'class Bert(None): pass', 'install --force-reinstall --no-deps onedl-mmpretrain=='),
        (None, 'import some_package.part', 'install some_package'),
    ],
)
def test_models_do_not_import(transformers: str | None, body: str, command: str, fake: Fake) -> None:
    """The library itself does; mmdet's models import mmpretrain's."""
    fake.distribution('transformers', transformers)
    fake.module('mmpretrain/models', body)
    fake.module('mmdet/models', 'import mmpretrain.models')
    what, fix = fake.only_problem()
    assert what.startswith('The models of mmpretrain and mmdet do not import: ')
    assert command in fix
    assert ('beside transformers 5.17.0' in what) == (transformers == '5.17.0')


def test_torch_broken_hides_what_follows_from_it(fake: Fake) -> None:
    fake.module('torch', 'raise ImportError("libcudart.so.13: cannot open shared object file")')
    for name in ('torchvision', 'mmengine', 'mmcv', 'mmcv/ops', 'mmdet', 'mmseg', 'mmpretrain', 'repnext_mm'):
        fake.module(name, 'import torch')
    what, command = fake.only_problem()
    assert 'libcudart' in what
    assert 'torch==2.11.0 torchvision==0.26.0' in command


@pytest.mark.parametrize(
    'body, why, options',
    [
        ('import mmcv._ext', 'mmcv came without them', ''),
        ('raise ImportError("undefined symbol: _ZN3c10")', 'compiled for another torch', ' --set-aside'),
    ],
)
def test_no_operators(body: str, why: str, options: str, fake: Fake) -> None:
    fake.module('mmcv/ops', body)
    if options:
        (fake.folder / 'mmcv' / f'_ext{EXTENSION_SUFFIXES[0]}').touch()
    what, command = fake.only_problem()
    assert what.startswith(f"mmcv's operators do not load, {why}")
    assert 'mim install "onedl-mmcv==2.3.6"' in what
    assert command.endswith(f'-m repnext_mm.mmcv_ops install{options}')


def test_operators_of_ours_are_named(fake: Fake) -> None:
    fake.module('mmcv/ops', OPS.replace('GCC 12.2', 'none, the operators run on torchvision'))
    code, text = run(['-S'], [], fake.folder)
    assert code == 0
    assert re.search(r'^mmcv.ops +load; .* compiler none, the operators run on torchvision$', text, re.MULTILINE)


def test_operators_without_repnext_mm(fake: Fake) -> None:
    fake.module('mmcv/ops', 'raise ModuleNotFoundError("No module named \'repnext_mm\'")')
    shutil.rmtree(fake.folder / 'repnext_mm')
    what, _ = fake.only_problem()
    assert what.startswith('repnext_mm is not installed')


def test_operators_for_cpu_on_a_gpu_machine(fake: Fake) -> None:
    fake.module('torch', TORCH.replace('lambda: 0', 'lambda: 1'))
    what, command = fake.only_problem()
    assert what.startswith('A GPU is there')
    assert command.endswith('-m repnext_mm.mmcv_ops install')


@pytest.mark.parametrize(
    'name, version, said, command',
    [
        ('torchvision', '0.25.0', 'built for torch 2.10.0', '--upgrade torch==2.11.0+cpu torchvision'),
        ('torch', '2.0.1', 'too old', 'torch==2.11.0'),
        ('numpy', '1.26.4', 'too old', f'numpy=={NUMPY}'),
        ('setuptools', '65.5.0', 'need 77 to 80', '"setuptools>=77,<81"'),
        ('setuptools', '82.0', 'need 77 to 80', '"setuptools>=77,<81"'),
        ('setuptools', None, 'is missing', '"setuptools>=77,<81"'),
        ('pip', None, 'pip is missing', 'ensurepip'),
        ('mmcv_full', '1.7.2', 'mmcv 1.x', 'uninstall -y mmcv-full'),
        ('mmengine', '0.10.7', 'Both lanes', 'uninstall -y onedl-mmengine'),
    ],
)
def test_wrong_distribution(name: str, version: str | None, said: str, command: str, fake: Fake) -> None:
    if name == 'torch':
        fake.distribution('torchvision', '0.15.2')
    fake.distribution(name, version, 'Requires-Dist: torch==2.10.0\n' if name == 'torchvision' else '')
    what, fix = fake.only_problem()
    assert said in what
    assert command in fix


def test_openmmlab_lane_and_its_numpy(fake: Fake) -> None:
    for name in DISTRIBUTIONS:
        if name.startswith('onedl'):
            fake.distribution(name, None)
    fake.distribution('mmengine', '0.10.7')
    fake.distribution('mmcv', '2.1.0')
    assert fake.check()['lane'] == 'OpenMMLab'
    what, command = fake.only_problem()
    assert 'too new' in what
    assert 'numpy==1.26.4' in command


@pytest.mark.parametrize('content', [b'', b'\xff\xfe\x00garbage', b'Name: torch\n'], ids=['empty', 'bytes', 'nameless'])
def test_broken_records(content: bytes, fake: Fake) -> None:
    for record in fake.folder.glob('*.dist-info/METADATA'):
        record.write_bytes(content)
    assert fake.check()['packages']['torch']['version'] == '2.11.0+cpu'


def test_pins_are_those_of_the_requirement_files() -> None:
    pins, newer = (_constant(name) for name in ('PINS', 'PINS_314'))
    for lane, table in {**pins, 'onedl': newer}.items():
        files = [ROOT / 'requirements' / f'{name}{lane.lower()}.txt' for name in ('torch-', '')]
        lines = {line.split(';')[0] for file in files for line in file.read_text().splitlines()}
        assert set(table.values()) <= lines


def test_pythons_are_those_of_the_environment() -> None:
    text = (ROOT / 'tools' / 'setup_env.py').read_text()
    made = [tuple(map(int, minors.split(', '))) for minors in re.findall(r'minors=\(([\d, ]+)\)', text)]
    assert (min(map(min, made)), max(map(max, made))) == _constant('PYTHONS')


def _constant(name: str) -> Any:
    (value,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(MODULE.read_text()).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == name
    )
    return value


@pytest.mark.parametrize('script', [SCRIPT, MODULE, ROOT / 'tools' / 'setup_env.py'], ids=['script', 'module', 'setup'])
def test_standard_library_only(script: Path) -> None:
    imports = [
        node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or '' for node in imports if isinstance(node, ast.ImportFrom)}
    assert {name.split('.')[0] for name in names} <= sys.stdlib_module_names


@pytest.mark.slow
def test_this_environment() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    'there, way',
    [
        ({'python3.11', 'python3.12'}, r'make env PYTHON=python3\.12$'),
        (set(), r'^pip install uv && uv venv --python 3\.13 --seed \.venv && make env$'),
    ],
    ids=['on PATH', 'none'],
)
def test_names_a_python_that_is_there(there: set[str], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location('check_env', MODULE)
    assert spec is not None
    assert spec.loader is not None
    check_env = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check_env)
    monkeypatch.setattr(check_env.shutil, 'which', lambda name: name if name in there else None)
    monkeypatch.setattr(check_env.sys, 'version_info', (3, 15, 0))
    (problem,) = check_env.find_problems({}, 'none')
    assert 'need 3.10 to 3.14' in problem.what
    assert re.search(way, problem.command)


def test_the_command_and_the_script_in_a_wheel_say_the_same(fake: Fake) -> None:
    """With a torch that cannot be imported, and the script where MIM looks for it."""
    shutil.rmtree(fake.folder / 'repnext_mm')
    shutil.copytree(ROOT / 'repnext_mm', fake.folder / 'repnext_mm', ignore=shutil.ignore_patterns('__pycache__'))
    (fake.folder / 'repnext_mm/.mim/tools').mkdir(parents=True)
    script = shutil.copy(SCRIPT, fake.folder / 'repnext_mm/.mim/tools')
    fake.module('torch', 'raise ImportError("libcudart.so.13: cannot open shared object file")')
    for command in (['-m', 'repnext_mm', 'check', 'env'], [script]):
        done = subprocess.run(
            [sys.executable, '-S', *command],
            capture_output=True,
            text=True,
            env=dict(os.environ, PYTHONPATH=str(fake.folder)),
            cwd=fake.folder,
        )
        assert done.returncode == 1, done.stderr
        assert '1. torch does not import: ImportError: libcudart' in done.stdout
