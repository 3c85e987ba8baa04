"""tools/setup_env.py: wheels kept by what they depend on, progress, and one sentence for everything that goes wrong."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import fast

ROOT = Path(__file__).resolve().parents[2]
FACTS = {
    'torch': '2.11.0+cu130',
    'cuda': False,
    'arches': '',
    'toolkit': '13.0',
    'nvcc': False,
    'python': 'cp311',
    'headers': '/nowhere',
}
BUILD_LOG = """
Building wheels for collected packages: onedl-mmcv
  [1/40] c++ -MMD -c bbox.cpp
  [3/40] c++ -MMD -c nms.cpp
  [4/40] c++ -MMD -c roi_align.cpp
  [5/4
  creating build [see log]
  [39/40] c++ -MMD -c upfirdn.cpp
  [40/40] c++ -MMD -c voxel.cpp
"""


@pytest.fixture
def setup_env(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    spec = importlib.util.spec_from_file_location('setup_env', ROOT / 'tools' / 'setup_env.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv('REPNEXT_MM_WHEELS', str(tmp_path / 'wheels'))
    for name in ('TORCH_CUDA_ARCH_LIST', 'MAX_JOBS', 'CXX'):
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.fixture
def venv(setup_env: Any, tmp_path: Path) -> Any:
    """Looks like a virtual environment: its python is the one that runs this."""
    (tmp_path / 'venv' / 'bin').mkdir(parents=True)
    (tmp_path / 'venv' / 'pyvenv.cfg').write_text('version = 3.11.7\n')
    (tmp_path / 'venv' / 'bin' / 'python').symlink_to(sys.executable)
    return setup_env.Venv(tmp_path / 'venv')


def test_progress_of_a_compilation(setup_env: Any, capsys: pytest.CaptureFixture[str]) -> None:
    progress = setup_env.Progress('compiling')
    for start in range(0, len(BUILD_LOG), 60):  # a log grows in the middle of lines too
        progress.read(BUILD_LOG[start : start + 60])
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'compiling'
    assert [line.split(',')[0].strip() for line in lines[1:-1]] == ['4 of 40 files', '39 of 40 files', '40 of 40 files']


def test_progress_rewrites_one_line_of_a_terminal(
    setup_env: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    monkeypatch.setenv('COLUMNS', '40')
    progress = setup_env.Progress('[2/7] torch')
    progress.read(f'  Downloading torch-{"x" * 100}.whl\n')
    (line,) = capsys.readouterr().out.splitlines()[1:] or ['']
    assert 'Downloading torch' in line
    assert len(line) < 40 + len('\033[K')


def test_key_holds_what_a_wheel_depends_on(setup_env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(requirement: str = 'onedl-mmcv==2.3.6', **changes: object) -> str:
        return setup_env.key(requirement, {**FACTS, **changes})

    keys = [
        key(),
        key('onedl-mmcv==2.3.7'),
        key(torch='2.11.0+cpu'),
        key(python='cp312'),
        key(cuda=True),
        key(cuda=True, arches='8.0'),
        key(cuda=True, arches='8.0 9.0'),
    ]
    monkeypatch.setenv('TORCH_CUDA_ARCH_LIST', '7.5;8.6')
    keys.append(key(cuda=True, arches='8.0'))
    assert len(set(keys)) == len(keys)
    assert key().startswith('onedl-mmcv-2.3.6_torch-2.11.0+cu130_cp311_')
    assert all(Path(each).name == each and ' ' not in each for each in keys)


def test_wheels_lie_outside_the_clone(setup_env: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert setup_env.wheels() == tmp_path / 'wheels'
    monkeypatch.delenv('REPNEXT_MM_WHEELS')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    assert setup_env.wheels() == tmp_path / 'cache' / 'repnext_mm' / 'wheels'
    monkeypatch.setenv('XDG_CACHE_HOME', '')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert setup_env.wheels() == tmp_path / '.cache' / 'repnext_mm' / 'wheels'


def test_second_call_starts_nothing(
    setup_env: Any, venv: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    venv.notes.mkdir()
    (venv.notes / 'stamp').write_text(venv.fingerprint('onedl portable '))
    monkeypatch.setattr(subprocess, 'Popen', None)
    setup_env.main(['--venv', str(venv.path)])
    assert capsys.readouterr().out == f'{venv.path}: ready (lane onedl)\n'


def test_stamp_knows_requirements_lane_and_python(
    setup_env: Any, venv: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ('requirements', 'tools'):
        shutil.copytree(ROOT / name, tmp_path / 'clone' / name)
    shutil.copy(ROOT / 'setup.py', tmp_path / 'clone')
    monkeypatch.setattr(setup_env, 'ROOT', tmp_path / 'clone')
    prints = [venv.fingerprint('onedl'), venv.fingerprint('openmmlab')]
    for changed in (
        tmp_path / 'clone' / 'requirements' / 'dev.txt',
        tmp_path / 'clone' / 'setup.py',
        venv.path / 'pyvenv.cfg',
    ):
        changed.write_text(changed.read_text() + '# changed\n')
        prints.append(venv.fingerprint('onedl'))
    assert len(set(prints)) == 5
    assert not venv.ready('onedl')


def test_failed_step_shows_the_end_of_its_log(setup_env: Any, venv: Any) -> None:
    code = 'print("error: no space left"); raise SystemExit(3)'
    with pytest.raises(SystemExit) as stopped:
        venv.step('[1/7] a step', [sys.executable, '-c', code], log='a')
    assert 'failed with exit code 3' in str(stopped.value)
    assert '  | error: no space left' in str(stopped.value)
    assert f'grep -n -i -B2 -A4 error {venv.notes / "a.log"}' in str(stopped.value)


def test_step_has_no_input_and_no_foreign_path(venv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('PYTHONPATH', '/somewhere')
    code = 'import os, sys; assert not sys.stdin.read() + os.environ.get("PYTHONPATH", ""); print(os.environ["PATH"])'
    venv.step('a step', [sys.executable, '-c', code], log='a')
    assert (venv.notes / 'a.log').read_text().startswith(str(venv.path / 'bin'))


def test_interrupted_step_leaves_no_process(
    setup_env: Any, venv: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pid_file = tmp_path / 'pid'

    def interrupt(progress: object, text: str) -> None:
        if pid_file.exists() and pid_file.read_text().strip():
            raise KeyboardInterrupt

    monkeypatch.setattr(setup_env.Progress, 'read', interrupt)
    with pytest.raises(KeyboardInterrupt):
        venv.step('a step', ['sh', '-c', f'sleep 300 & echo $! > {pid_file}; wait'], log='a')
    assert ends(int(pid_file.read_text()))


def ends(pid: int) -> bool:
    """A process that nobody waits for may stay as a zombie."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
            state = Path(f'/proc/{pid}/stat')
            if state.exists() and state.read_text().rsplit(')', 1)[1].split()[0] == 'Z':
                return True
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def pip(setup_env: Any, venv: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Instead of compiling, pip writes a file where it is told to, unless the list says 'fail'."""
    calls: list[str] = []

    def wheel(title: str, *arguments: str, env: dict[str, str], log: str) -> None:
        if 'fail' in calls:
            raise SystemExit('no')
        assert env['MMCV_WITH_OPS'] == '1'
        assert int(env['MAX_JOBS']) >= 1
        assert {'--no-build-isolation', '--no-deps', '--no-cache-dir', '--no-binary'} <= set(arguments)
        assert '--require-hashes' in arguments
        Path(arguments[arguments.index('-w') + 1], 'onedl_mmcv-2.3.6.whl').write_text('wheel')
        calls.append(arguments[-1])

    monkeypatch.setattr(venv, 'pip', wheel)
    monkeypatch.setattr(setup_env, 'can_compile', lambda facts: None)
    monkeypatch.setattr(setup_env, 'published_wheel', lambda *_: False)
    monkeypatch.setattr(venv, 'ask', lambda code: setup_env.json.dumps(FACTS))
    return calls


def test_wheel_is_compiled_once_and_kept(
    setup_env: Any, venv: Any, pip: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first = setup_env.mmcv_wheel(venv, 'onedl')
    assert 'about 9 minutes on 2 cores' in capsys.readouterr().out
    assert setup_env.mmcv_wheel(venv, 'onedl') == first
    assert [Path(path).read_text().split('==')[0] for path in pip] == ['onedl-mmcv']
    assert '--hash=sha256:' in Path(pip[0]).read_text()
    assert [path.name for path in setup_env.wheels().rglob('*.whl')] == ['onedl_mmcv-2.3.6.whl']
    assert not list(setup_env.wheels().glob('building-*'))


def test_failed_compilation_keeps_nothing(setup_env: Any, venv: Any, pip: list[str]) -> None:
    pip.append('fail')
    with pytest.raises(SystemExit):
        setup_env.mmcv_wheel(venv, 'onedl')
    assert not list(setup_env.wheels().iterdir())


@pytest.mark.parametrize(
    'changes, compiler, said',
    [
        ({}, 'no-such-compiler -O2', "C\\+\\+ compiler, and 'no-such-compiler'"),
        ({}, sys.executable, 'Python.h'),
        ({'cuda': True, 'headers': 'here'}, sys.executable, 'CUDA toolkit 13.0 .* CUDA_VISIBLE_DEVICES= make env'),
    ],
)
def test_what_a_compilation_lacks(
    changes: dict[str, Any], compiler: str, said: str, setup_env: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv('CXX', compiler)
    (tmp_path / 'Python.h').touch()
    headers = str(tmp_path) if changes.pop('headers', '') else FACTS['headers']
    with pytest.raises(SystemExit, match=said):
        setup_env.can_compile({**FACTS, **changes, 'headers': headers})


def test_refuses_a_folder_that_is_not_a_venv(setup_env: Any, tmp_path: Path) -> None:
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / 'thesis.tex').touch()
    with pytest.raises(SystemExit, match='is not a virtual environment'):
        setup_env.create(setup_env.Venv(tmp_path / 'work'), 'onedl')
    assert (tmp_path / 'work' / 'thesis.tex').exists()


def test_refuses_the_other_lane(setup_env: Any, venv: Any) -> None:
    (venv.path / 'lib' / 'python3.11' / 'site-packages' / 'mmengine-0.10.7.dist-info').mkdir(parents=True)
    with pytest.raises(SystemExit, match='holds lane openmmlab'):
        setup_env.create(venv, 'onedl')


def test_refuses_other_pythons(setup_env: Any, venv: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(setup_env.LANES, 'onedl', setup_env.LANES['onedl']._replace(minors=(97, 98)))
    monkeypatch.setattr(setup_env.shutil, 'which', lambda name: None)
    with pytest.raises(SystemExit, match=r'runs this, lane onedl needs 3\.97 to 3\.98: install one .* uv venv'):
        setup_env.create(setup_env.Venv(tmp_path / 'new'), 'onedl')
    with pytest.raises(SystemExit, match=r'holds Python 3\.\d+, lane onedl needs 3\.97 to 3\.98'):
        setup_env.create(venv, 'onedl')


@pytest.mark.parametrize(
    'there, way',
    [
        ({'python3.12', 'uv'}, 'make env PYTHON=python3.12'),
        ({'uv'}, 'uv venv --python 3.13 --seed {venv} && make env'),
        (
            set(),
            'install one and name it (make env PYTHON=python3.13), or with uv (pip install uv): '
            'uv venv --python 3.13 --seed {venv} && make env',
        ),
    ],
)
def test_names_a_python_that_is_there(
    there: set[str], way: str, setup_env: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(setup_env.shutil, 'which', lambda name: name if name in there else None)
    venv = setup_env.Venv(tmp_path / 'venv')
    assert setup_env.another_python(venv, setup_env.LANES['onedl'].minors) == way.format(venv=venv.path)


def test_python_without_venv(setup_env: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, 'ensurepip', None)
    with pytest.raises(SystemExit, match=r'comes without venv and ensurepip.*apt install python3\.\d+-venv'):
        setup_env.create(setup_env.Venv(tmp_path / 'new'), 'onedl')
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('left', fast(['a start', 'a dead python'], 'a dead python'))
def test_interrupted_creation_continues(left: str, setup_env: Any, tmp_path: Path) -> None:
    venv = setup_env.Venv(tmp_path / 'venv')
    venv.notes.mkdir(parents=True)
    if left == 'a dead python':
        (venv.path / 'bin').mkdir()
        (venv.path / 'pyvenv.cfg').touch()
        venv.python.symlink_to(tmp_path / 'removed')
    setup_env.create(venv, 'onedl')
    assert venv.ask('import pip; print(1)') == '1'


LANES = pytest.mark.parametrize('lane', ['onedl', 'openmmlab'])


@LANES
def test_requirements_are_exact(lane: str, setup_env: Any) -> None:
    assert lane in setup_env.LANES
    for name in setup_env.pinned(lane):
        lines = setup_env.requirements(name)
        assert lines
        assert all(line.count('==') == 1 for line in (each.split(';')[0] for each in lines))


def locked_versions(setup_env: Any, name: str) -> dict[str, set[str]]:
    """Versions of each package in a file of hashes; a package may have one for each range of Pythons."""
    found: dict[str, set[str]] = {}
    for entry in setup_env.entries(ROOT / 'requirements' / 'locked' / f'{name}.txt'):
        package, version = re.match(r'([\w.-]+)==([^\s;]+)', entry).groups()
        assert re.findall(r'--hash=sha256:[0-9a-f]{64}\b', entry), entry
        assert entry.count('--hash=') == len(re.findall(r'--hash=sha256:[0-9a-f]{64}\s', entry))
        found.setdefault(package.lower(), set()).add(version)
    return found


@LANES
def test_every_requirement_is_locked_at_its_version(lane: str, setup_env: Any) -> None:
    locks = {lane: setup_env.pinned(lane), f'demo-{lane}': ['demo']}
    for lock, names in locks.items():
        locked = locked_versions(setup_env, lock)
        wanted: dict[str, set[str]] = {}
        for line in (line for name in names for line in setup_env.requirements(name)):
            package, version = line.split(';')[0].strip().split('==')
            wanted.setdefault(package.lower(), set()).add(version)
        assert {package: locked.get(package) for package in wanted} == wanted, 'make lock renews the hashes'
    assert len(locked_versions(setup_env, lane)) > 100  # what they need in turn


@LANES
def test_the_page_in_the_browser_changes_no_version(lane: str, setup_env: Any) -> None:
    there, page = locked_versions(setup_env, lane), locked_versions(setup_env, f'demo-{lane}')
    shared = there.keys() & page.keys()
    assert {'numpy', 'pillow'} <= shared
    assert {package: page[package] for package in shared} == {package: there[package] for package in shared}


@LANES
def test_locked_files_name_no_place(lane: str) -> None:
    for name in (lane, f'demo-{lane}'):
        text = (ROOT / 'requirements' / 'locked' / f'{name}.txt').read_text()
        assert '://' not in text
        assert not re.search(r'^\s*-', re.sub(r'^\s+--hash=.*$', '', text, flags=re.MULTILINE), flags=re.MULTILINE)


class Call(NamedTuple):
    """One command of pip."""

    words: tuple[str, ...]
    packages: list[str]  # of its requirements file
    env: dict[str, str]


@pytest.fixture
def calls(setup_env: Any, venv: Any, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The commands that pip would get, on a machine that has hashes."""
    found: list[Call] = []

    def pip(title: str, *words: str, env: dict[str, str] | None = None, log: str = '') -> None:
        lines = Path(words[-1]).read_text() if words[-1].endswith('.txt') else ''
        found.append(Call(words, re.findall(r'^([\w-]+)==', lines, re.MULTILINE), env or {}))

    monkeypatch.setattr(setup_env, 'locked', lambda lane: ROOT / 'requirements' / 'locked' / f'{lane}.txt')
    monkeypatch.setattr(venv, 'pip', pip)
    return found


@LANES
def test_what_comes_from_an_index_is_checked_by_its_hash(
    lane: str, setup_env: Any, venv: Any, calls: list[Call]
) -> None:
    setup_env.install(venv, lane, compiled=False, torch='', hashed=True)
    assert all({'--require-hashes', '--no-deps'} <= set(call.words) for call in calls)
    tools, packages, opencv = calls
    assert set(tools.packages) == {line.split('==')[0] for line in setup_env.requirements('build')}
    assert {'torch', setup_env.LANES[lane].mmcv, 'timm'} <= set(packages.packages)
    assert '--no-build-isolation' in packages.words
    assert set(opencv.packages) == {'opencv-python-headless'}


def test_packages_are_built_where_torch_cannot_be_imported(
    setup_env: Any, venv: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    imports = 'try:\n    import torch\nexcept ModuleNotFoundError:\n    print("hidden")'

    def pip(title: str, *words: str, env: dict[str, str] | None = None, log: str = '') -> None:
        venv.step(title, [sys.executable, '-c', imports], env=env, log=re.sub(r'\W+', '-', title))

    monkeypatch.setattr(venv, 'pip', pip)
    setup_env.install(venv, 'onedl', compiled=False, torch='', hashed=True)
    assert [log.name for log in venv.notes.glob('*.log') if log.read_text() == 'hidden\n'] == [
        '-3-5-PyTorch-mm-packages-of-lane-onedl-development-tools-up-to-3-GB-to-download-.log'
    ]


def test_compiled_operators_come_last_and_mmcv_with_them(
    setup_env: Any, venv: Any, calls: list[Call], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(setup_env, 'mmcv_wheel', lambda venv, lane, hashed: tmp_path / f'mmcv-{hashed}.whl')
    setup_env.install(venv, 'onedl', compiled=True, torch='', hashed=True)
    assert not any('onedl-mmcv' in call.packages for call in calls)
    setup_env.operators(venv, 'onedl', compiled=True, hashed=True)
    assert calls[-1].words[-1] == str(tmp_path / 'mmcv-True.whl')


@pytest.mark.parametrize(
    'system, torch, wanted, index',
    [
        ('Linux', 'cpu', 'torch==2.11.0+cpu', True),
        ('Darwin', 'cpu', 'torch==2.11.0', False),
        ('Linux', '2.14.1', 'torch==2.14.1', False),
    ],
)
def test_another_torch_brings_its_torchvision(
    system: str,
    torch: str,
    wanted: str,
    index: bool,
    setup_env: Any,
    venv: Any,
    calls: list[Call],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(setup_env.platform, 'system', lambda: system)
    setup_env.install(venv, 'onedl', compiled=False, torch=torch, hashed=True)
    assert calls[0].words[:3] == ('install', wanted, 'torchvision')
    assert (setup_env.CPU_INDEX in calls[0].words) == index
    assert set(calls[0].packages) == {'numpy'}
    assert '--require-hashes' in calls[2].words
    others = {package for call in calls[1:] for package in call.packages}
    assert 'onedl-mmcv' in others
    assert not [package for package in others if package.startswith(('torch', 'nvidia', 'cuda', 'triton'))]


def test_hashes_are_for_the_machines_they_were_tried_on(setup_env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_env.platform, 'system', lambda: 'Linux')
    monkeypatch.setattr(setup_env.platform, 'machine', lambda: 'x86_64')
    assert setup_env.locked('onedl').read_text()
    monkeypatch.setattr(setup_env.platform, 'machine', lambda: 'aarch64')
    assert setup_env.locked('onedl') is None


@pytest.mark.parametrize('flags, hashed', [((), True), (('--unlocked',), False)])
def test_unlocked_checks_no_hash(
    flags: tuple[str, ...], hashed: bool, setup_env: Any, venv: Any, calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[list[str]] = []
    monkeypatch.setattr(setup_env, 'Venv', lambda path: venv)
    monkeypatch.setattr(setup_env, 'create', lambda venv, lane: None)
    monkeypatch.setattr(venv, 'ask', lambda code: '1')
    monkeypatch.setattr(venv, 'step', lambda title, command, **_: steps.append(command))
    setup_env.main(['--venv', str(venv.path), *flags])
    assert any('--require-hashes' in call.words for call in calls) == hashed
    assert steps == [[str(venv.python), '-m', 'repnext_mm.mmcv_ops', 'install']]
    assert venv.ready('onedl portable ')


def test_python_3_14_needs_the_lock(setup_env: Any, venv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_env, 'locked', lambda lane: None)
    monkeypatch.setattr(venv, 'ask', lambda code: 'True')
    with pytest.raises(SystemExit, match=r'Python 3\.14 works with the locked versions only.*take 3\.13 or older'):
        setup_env.install(venv, 'onedl', compiled=False, torch='', hashed=True)


def test_a_file_with_another_hash_is_not_installed(setup_env: Any, tmp_path: Path) -> None:
    subprocess.run([sys.executable, '-m', 'venv', str(tmp_path / 'venv')], check=True)  # Debian's own has no pip
    venv = setup_env.Venv(tmp_path / 'venv')
    shelf, there = tmp_path / 'shelf', tmp_path / 'there'
    shelf.mkdir()
    wheel = shelf / 'tiny-1.0-py3-none-any.whl'
    with zipfile.ZipFile(wheel, 'w') as archive:
        archive.writestr('tiny.py', '')
        archive.writestr('tiny-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n')
        archive.writestr('tiny-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        archive.writestr('tiny-1.0.dist-info/RECORD', '')
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock = tmp_path / 'lock.txt'
    install = (
        'install',
        '--require-hashes',
        '--no-deps',
        '--no-build-isolation',
        '--no-index',
        '--find-links',
        str(shelf),
        '--target',
        str(there),
        '-r',
        str(lock),
    )
    lock.write_text(f'tiny==1.0 \\\n    --hash=sha256:{digest[::-1]}\n')
    with pytest.raises(SystemExit, match='HASHES'):
        venv.pip('tiny', *install)
    assert not there.exists()
    lock.write_text(f'tiny==1.0 \\\n    --hash=sha256:{digest}\n')
    venv.pip('tiny', *install)
    assert (there / 'tiny.py').exists()
