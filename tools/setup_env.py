"""Make the environment: `python3 tools/setup_env.py --lane onedl`. Standard library only; does nothing twice."""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent.parent


class Lane(NamedTuple):
    """Pins are in requirements/torch-<lane>.txt and requirements/<lane>.txt, with hashes in its locked/."""

    minors: tuple[int, ...]  # Python 3.x versions that all the pins have wheels for
    marker: str  # a distribution that only this lane installs
    mmcv: str  # its distribution of mmcv
    wheels: str  # where the lane publishes mmcv with compiled operators, for some pairs of torch and Python


LANES = {
    'onedl': Lane(
        minors=(10, 11, 12, 13, 14),
        marker='onedl_mmengine',
        mmcv='onedl-mmcv',
        wheels='https://mmwheels.onedl.ai/{device}-torch{digits}/simple/onedl-mmcv/index.html',
    ),
    'openmmlab': Lane(
        minors=(10, 11),
        marker='mmengine',
        mmcv='mmcv',
        wheels='https://download.openmmlab.com/mmcv/dist/{device}/torch{torch}/index.html',
    ),
}
CPU_INDEX = 'https://download.pytorch.org/whl/cpu'
# What the venv's Python knows of its torch; FORCE_CUDA is mmcv's own switch.
ASK_TORCH = """
import json, os, sys, sysconfig, torch
from torch.utils.cpp_extension import CUDA_HOME
gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
arches = sorted({'%d.%d' % torch.cuda.get_device_capability(gpu) for gpu in gpus})
print(json.dumps(dict(
    torch=torch.__version__, cuda=bool(arches) or os.environ.get('FORCE_CUDA') == '1', arches=' '.join(arches),
    toolkit=torch.version.cuda, nvcc=bool(CUDA_HOME) and os.path.exists(os.path.join(CUDA_HOME, 'bin', 'nvcc')),
    python='cp%d%d' % sys.version_info[:2], headers=sysconfig.get_path('include'))))
"""


class Progress:
    """One line per step; rewritten in place on a terminal, every tenth of a compilation elsewhere."""

    def __init__(self, title: str) -> None:
        self.title, self.start, self.note, self.tenth = title, time.monotonic(), '', 0
        self.live = sys.stdout.isatty()
        if not self.live:
            print(title, flush=True)

    def read(self, text: str) -> None:
        """Take what the running command has written since the last call."""
        for line in text.splitlines():
            counted = re.match(r'\s*\[(\d+)/(\d+)\]', line)  # ninja: files compiled so far
            if counted:
                done, total = map(int, counted.groups())
                self.note = f'{done} of {total} files'
                if not self.live and done * 10 // total > self.tenth:
                    self.tenth = done * 10 // total
                    print(f'    {self.note}, {time.monotonic() - self.start:.0f} s', flush=True)
            elif re.match(r'\s*(Collecting|Downloading|Building|Installing) ', line):
                self.note = line.strip()
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            line = f'{self.title}  {time.monotonic() - self.start:.0f} s  {self.note}'
            print(f'\r\033[K{line[:width]}', end='', flush=True)

    def close(self) -> None:
        seconds = f'{time.monotonic() - self.start:.1f} s'
        print(f'\r\033[K{self.title}  {seconds}' if self.live else f'    {seconds}', flush=True)


class Venv:
    """A virtual environment and the steps taken in it; logs and the stamp lie in its `setup_env` folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.python, self.notes = path, path / 'bin' / 'python', path / 'setup_env'

    def fingerprint(self, choice: str) -> str:
        """What the environment depends on, its lane first; its own Python counts, not the one that runs this script."""
        lane = choice.split()[0]
        names = [*pinned(lane), f'locked/{lane}']
        files = [path for name in names if (path := ROOT / 'requirements' / f'{name}.txt').exists()]
        files += [ROOT / 'setup.py', Path(__file__)]
        digest = hashlib.sha256(f'{choice} {ROOT} {self.path}'.encode())
        for content in [self.path / 'pyvenv.cfg', *files]:
            digest.update(content.read_bytes())
        return digest.hexdigest()

    def ready(self, choice: str) -> bool:
        stamp = self.notes / 'stamp'
        return stamp.exists() and self.python.exists() and stamp.read_text() == self.fingerprint(choice)

    def file(self, title: str, lines: list[str]) -> str:
        """The path of a requirements file with these lines, or entries of a lock file."""
        self.notes.mkdir(parents=True, exist_ok=True)
        path = self.notes / f'{title}.txt'
        path.write_text(''.join(f'{line.rstrip()}\n' for line in lines))
        return str(path)

    def step(self, title: str, command: list[str], *, env: dict[str, str] | None = None, log: str = '') -> None:
        """Run a command with its output in a log file and a line that moves; end with the log's tail if it fails."""
        self.notes.mkdir(parents=True, exist_ok=True)
        file = self.notes / f'{log or re.sub("[^a-z0-9]+", "_", title.lower())[:40].strip("_")}.log'
        progress = Progress(title)
        with file.open('wb') as sink, file.open(errors='replace') as source:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=dict(self.environment(), **(env or {})),
                start_new_session=True,
            )
            try:
                while process.poll() is None:
                    try:
                        process.wait(timeout=0.5)
                    except subprocess.TimeoutExpired:
                        progress.read(source.read())
            finally:
                if process.poll() is None:  # interrupted: the compilers below pip must end too
                    os.killpg(process.pid, signal.SIGTERM)
                    process.wait()
        progress.close()
        if process.returncode:
            tail = '\n'.join(f'  | {line[:300]}' for line in file.read_text(errors='replace').splitlines()[-15:])
            stop(
                f'{title}: failed with exit code {process.returncode}; the last lines of its log:\n{tail}\n'
                f'To look further: grep -n -i -B2 -A4 error {shlex.quote(str(file))} | less'
            )

    def pip(self, title: str, *arguments: str, env: dict[str, str] | None = None, log: str = '') -> None:
        verb, *rest = arguments
        self.step(title, [str(self.python), '-m', 'pip', verb, '--progress-bar', 'off', *rest], env=env, log=log)

    def environment(self) -> dict[str, str]:
        """The caller's environment without what would send packages elsewhere; ninja is found on PATH only."""
        env = {key: value for key, value in os.environ.items() if key not in ('PYTHONPATH', 'PYTHONHOME')}
        return dict(
            env,
            PATH=f'{self.python.parent}{os.pathsep}{env.get("PATH", os.defpath)}',
            PIP_USER='0',
            PIP_NO_INPUT='1',
            PIP_DISABLE_PIP_VERSION_CHECK='1',
            PIP_NO_WARN_SCRIPT_LOCATION='1',
        )

    def ask(self, code: str) -> str:
        """Standard output of a piece of Python in the environment, '' where it fails."""
        if not self.python.exists():
            return ''
        run = subprocess.run(
            [str(self.python), '-I', '-c', code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environment(),
        )
        return '' if run.returncode else run.stdout.strip()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--lane', choices=LANES, default='onedl', help='which set of mm packages (default: onedl)')
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv', help='where to make it (default: .venv)')
    parser.add_argument(
        '--ops',
        choices=('portable', 'compiled'),
        default='portable',
        help="mmcv's operators: on torchvision, without a compiler (default), or compiled",
    )
    parser.add_argument(
        '--torch',
        default='',
        metavar='cpu|VERSION',
        help='another PyTorch than the tested one: a '
        "version, or cpu for the build without CUDA from PyTorch's own index",
    )
    parser.add_argument('--force', action='store_true', help='go through all steps again')
    parser.add_argument(
        '--unlocked',
        action='store_true',
        help='check versions, not hashes: for a package index whose '
        'files are its own, such as one of other builds of PyTorch',
    )
    options = parser.parse_args(arguments)
    venv, lane, start = Venv(options.venv.absolute()), options.lane, time.monotonic()
    choice = f'{lane} {options.ops} {options.torch}'
    if venv.ready(choice) and not options.force:
        print(f'{options.venv}: ready (lane {lane})')
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a step's `finally` runs
    create(venv, lane)
    install(venv, lane, compiled=options.ops == 'compiled', torch=options.torch, hashed=not options.unlocked)
    venv.pip('[4/5] repnext_mm, editable', 'install', '--no-deps', '--no-build-isolation', '-e', str(ROOT))
    operators(venv, lane, compiled=options.ops == 'compiled', hashed=not options.unlocked)
    if not venv.ask('import mmcv.ops, repnext_mm; print(1)'):
        stop(
            'Everything is installed, but mmcv.ops or repnext_mm does not import. To see which: '
            f'{venv.python} {ROOT / "tools" / "check_env.py"}'
        )
    (venv.notes / 'stamp').write_text(venv.fingerprint(choice))
    print(f'{options.venv}: ready (lane {lane}) after {time.monotonic() - start:.0f} s')


def install(venv: Venv, lane: str, *, compiled: bool, torch: str, hashed: bool) -> None:
    """Every package of a lane by the hashes of its lock file, or by version where no hashes are known or wanted."""
    without = {LANES[lane].mmcv} if compiled else set()
    if torch:
        without |= install_torch(venv, lane, torch)
    lock = locked(lane) if hashed else None
    if not lock and venv.ask('import sys; print(sys.version_info >= (3, 14))') == 'True':
        stop('Python 3.14 works with the locked versions only, which are for Linux on x86-64: take 3.13 or older.')
    if lock:
        wanted = [entry for entry in entries(lock) if not unwanted(name(entry), without)]
        rules = ('--require-hashes', '--no-deps')
    else:
        wanted = [
            line
            for file in pinned(lane)
            if file != 'cam'
            for line in requirements(file)
            if not unwanted(name(line), without)
        ]
        rules = ()
    tools = {name(line) for line in requirements('build')}
    # Without build isolation, so that what builds has a hash as well.
    first = venv.file('build-tools', [entry for entry in wanted if name(entry) in tools])
    venv.pip('[2/5] build tools', 'install', *rules, '-r', first)
    size = '' if torch else ' (up to 3 GB to download)'
    with tempfile.TemporaryDirectory() as folder:
        # mmcv's setup.py compiles wherever it can import torch: while packages are built, it cannot.
        Path(folder, 'torch.py').write_text('raise ModuleNotFoundError("hidden while packages are built")\n')
        title = f'[3/5] {"" if torch else "PyTorch, "}mm packages of lane {lane}, development tools{size}'
        options = [*rules, '--no-build-isolation', '-r', venv.file('packages', wanted)]
        venv.pip(title, 'install', *options, env=dict(PYTHONPATH=folder), log='packages')
    # A bare machine has no libGL: of the two builds of OpenCV in one folder the headless one must be the last.
    headless = [entry for entry in wanted if name(entry) == 'opencv-python-headless']
    # grad-cam asks for any headless OpenCV: without its dependencies, all of which are there.
    more = [] if lock else requirements('cam')
    options = [*rules, '--no-deps', '--force-reinstall', '-r', venv.file('headless-opencv', [*headless, *more])]
    venv.pip('[3/5] headless OpenCV', 'install', *options)


def install_torch(venv: Venv, lane: str, torch: str) -> set[str]:
    """Another PyTorch than the pinned one, with its torchvision; returns what the lock is not to bring then."""
    version = torch
    if torch == 'cpu':
        (version,) = (line.split('==')[1] for line in requirements(f'torch-{lane}') if name(line) == 'torch')
    index: list[str] = []
    if torch == 'cpu' and platform.system() == 'Linux':  # elsewhere the package index has builds without CUDA
        version, index = f'{version}+cpu', ['--extra-index-url', CPU_INDEX]
    numpy = [line for line in requirements(lane) if name(line) == 'numpy']  # else torchvision takes the newest
    options = [f'torch=={version}', 'torchvision', *index, '-r', venv.file('numpy', numpy)]
    venv.pip(f'[2/5] torch {version} and its torchvision', 'install', *options, log='torch')
    return {'torch', 'torchvision', 'triton', 'nvidia-*', 'cuda-*'}


def operators(venv: Venv, lane: str, *, compiled: bool, hashed: bool) -> None:
    """Give mmcv its operators: compiled for the torch that is there, or those of repnext_mm.mmcv_ops."""
    if compiled:
        wheel = mmcv_wheel(venv, lane, hashed=hashed)
        venv.pip("[5/5] mmcv's compiled operators", 'install', '--no-deps', '--force-reinstall', str(wheel))
    else:
        venv.step("[5/5] mmcv's operators on torchvision", [str(venv.python), '-m', 'repnext_mm.mmcv_ops', 'install'])


def create(venv: Venv, lane: str) -> None:
    """Make the venv, or take the one that is there; it must hold a fitting Python, pip, and no other lane."""
    minors = LANES[lane].minors
    known = f'3.{minors[0]} to 3.{minors[-1]}'
    ours = venv.path / 'pyvenv.cfg'
    if venv.path.exists() and not ours.exists() and {p.name for p in venv.path.iterdir()} - {'setup_env'}:
        stop(f'{venv.path} exists and is not a virtual environment: move it away, or name another folder with --venv.')
    minor = venv.ask('import sys; print(sys.version_info.minor)')
    if not minor:
        if sys.version_info[0] != 3 or sys.version_info.minor not in minors:
            stop(
                f'Python {platform.python_version()} runs this, lane {lane} needs {known}: '
                f'{another_python(venv, minors)}'
            )
        try:
            import ensurepip  # noqa: F401  # Debian and Ubuntu package it apart
            import venv as _  # noqa: F401
        except ImportError:
            stop(
                f'{sys.executable} comes without venv and ensurepip: install them (Debian, Ubuntu: sudo apt install '
                f'python3.{sys.version_info.minor}-venv), or take another Python: make env PYTHON=python3.x'
            )
        if ours.exists():  # its Python is gone, so nothing in it can run
            shutil.rmtree(venv.path)
        venv.step(
            f'[1/5] {venv.path.name} with Python {platform.python_version()}',
            [sys.executable, '-m', 'venv', str(venv.path)],
            log='venv',
        )
    elif int(minor) not in minors:
        stop(
            f'{venv.path} holds Python 3.{minor}, lane {lane} needs {known}: rm -r {shlex.quote(str(venv.path))} '
            'and run this again.'
        )
    for other in LANES.keys() - {lane}:
        if any(venv.path.glob(f'lib/python3*/site-packages/{LANES[other].marker}-*.dist-info')):
            stop(
                f'{venv.path} holds lane {other}, whose packages share their import names with lane {lane}: name '
                'another folder with --venv.'
            )
    if not venv.ask('import pip; print(1)'):  # creation was interrupted, or another tool made it without pip
        venv.step('[1/5] pip', [str(venv.python), '-m', 'ensurepip', '--upgrade', '--default-pip'])


def another_python(venv: Venv, minors: tuple[int, ...]) -> str:
    """The command that brings a fitting Python: one that is on PATH, or that uv brings."""
    found = next((program for minor in reversed(minors) if shutil.which(program := f'python3.{minor}')), None)
    if found:
        return f'make env PYTHON={found}'
    newest = f'3.{min(minors[-1], 13)}'  # 3.14 works on one platform only
    fetch = f'uv venv --python {newest} --seed {shlex.quote(str(venv.path))} && make env'
    return (
        fetch
        if shutil.which('uv')
        else f'install one and name it (make env PYTHON=python{newest}), or with uv (pip install uv): {fetch}'
    )


def mmcv_wheel(venv: Venv, lane: str, *, hashed: bool = True) -> Path:
    """The wheel with compiled operators for this torch and Python: kept, published by the lane, or compiled now."""
    (requirement,) = (line for line in requirements(lane) if name(line) == LANES[lane].mmcv)
    lock = locked(lane) if hashed else None
    sources = venv.file(
        'mmcv', [entry for entry in entries(lock) if name(entry) == name(requirement)] if lock else [requirement]
    )
    answer = venv.ask(ASK_TORCH)
    if not answer:
        stop(f'torch is installed but does not import: {venv.python} {ROOT / "tools" / "check_env.py"} says why.')
    facts = json.loads(answer)
    shelf = wheels() / key(requirement, facts)
    kept = sorted(shelf.glob('*.whl'))
    if kept:
        print(f'[5/5] {requirement}: taken from {shelf}')
        return kept[0]
    shelf.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='building-', dir=shelf.parent) as folder:
        if not published_wheel(venv, lane, requirement, facts, folder):
            can_compile(facts)
            jobs = os.environ.get('MAX_JOBS') or str(cores())
            kind = f'CUDA {facts["toolkit"]}' if facts['cuda'] else 'CPU'
            print(
                f'[5/5] {requirement} has no ready wheel: compiling its {kind} operators with {jobs} jobs, once for '
                'this torch and Python (about 9 minutes on 2 cores; with CUDA several times that)'
            )
            options = ['-v', '--no-build-isolation', '--no-deps', '--no-cache-dir', '--no-binary', name(requirement)]
            options += ['-w', folder, *(['--require-hashes'] if lock else []), '-r', sources]
            env = dict(MMCV_WITH_OPS='1', MAX_JOBS=jobs)
            venv.pip('    compiling', 'wheel', *options, log='mmcv', env=env)
        (built,) = Path(folder).glob('*.whl')
        shelf.mkdir(exist_ok=True)
        os.replace(built, shelf / built.name)  # the same disk: there whole, or not at all
    return shelf / built.name


def published_wheel(venv: Venv, lane: str, requirement: str, facts: dict[str, str], folder: str) -> bool:
    """Try the lane's own list of wheels, which has some pairs of torch and Python; whether one was downloaded."""
    device = f'cu{facts["toolkit"].replace(".", "")}' if facts['cuda'] else 'cpu'
    major, minor = facts['torch'].split('.')[:2]
    page = LANES[lane].wheels.format(device=device, torch=f'{major}.{minor}.0', digits=f'{major}{minor}0')
    options = ['--quiet', '--no-deps', '--only-binary', ':all:', '--no-index', '--timeout', '10', '--retries', '0']
    command = [str(venv.python), '-m', 'pip', 'download', *options, '--find-links', page, '-d', folder, requirement]
    print(f'[5/5] {requirement}: looking for a wheel for torch {major}.{minor} and {device}', flush=True)
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=venv.environment())
    return not run.returncode and any(Path(folder).glob('*.whl'))


def key(requirement: str, facts: dict[str, str]) -> str:
    """Everything that a compiled wheel depends on, as a folder name."""
    arches = os.environ.get('TORCH_CUDA_ARCH_LIST') or facts['arches'] or 'all'
    parts = [
        requirement.replace('==', '-'),
        f'torch-{facts["torch"]}',
        facts['python'],
        f'{platform.system()}-{platform.machine()}',
        f'cuda-{arches}' if facts['cuda'] else 'cpu',
    ]
    return re.sub(r'[^A-Za-z0-9._+-]+', '-', '_'.join(parts))


def wheels() -> Path:
    """Outside the clone, so that a fresh clone finds them."""
    cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(os.environ.get('REPNEXT_MM_WHEELS') or Path(cache) / 'repnext_mm' / 'wheels').absolute()


def can_compile(facts: dict[str, str]) -> None:
    """Say in one sentence what a compilation would say in a thousand lines."""
    compiler = shlex.split(os.environ.get('CXX') or 'c++')[0]
    if not shutil.which(compiler):
        stop(
            f"mmcv's operators need a C++ compiler, and {compiler!r} is not on PATH: install one (Debian, Ubuntu: "
            'sudo apt install g++) and run this again.'
        )
    if not Path(facts['headers'], 'Python.h').exists():
        stop(
            f"mmcv's operators need Python's headers, and {facts['headers']} has no Python.h: install them (Debian, "
            f'Ubuntu: sudo apt install python3.{facts["python"][3:]}-dev) and run this again.'
        )
    if facts['cuda'] and not facts['nvcc']:
        stop(
            f"mmcv's CUDA operators need nvcc, which is not here: install the CUDA toolkit {facts['toolkit']} and set "
            'CUDA_HOME, or hide the GPU and work on the CPU: CUDA_VISIBLE_DEVICES= make env'
        )


def pinned(lane: str) -> list[str]:
    """The files of requirements/ that say what belongs into the environment."""
    return [f'torch-{lane}', 'build', lane, 'digits', 'export', 'cam', 'dev']


def locked(lane: str) -> Path | None:
    """The file with the hashes of a lane, where they were tried: on Linux on x86-64."""
    path = ROOT / 'requirements' / 'locked' / f'{lane}.txt'
    tried = (platform.system(), platform.machine()) == ('Linux', 'x86_64')
    return path if tried and path.exists() else None


def entries(lock: Path) -> list[str]:
    """The packages of a file of hashes, each with its lines."""
    return [part for part in re.split(r'(?m)^(?=[A-Za-z0-9])', lock.read_text()) if '==' in part]


def requirements(file: str) -> list[str]:
    lines = (ROOT / 'requirements' / f'{file}.txt').read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith('#')]


def name(requirement: str) -> str:
    return re.split(r'[=<>!~;\[ ]', requirement, maxsplit=1)[0]


def unwanted(distribution: str, patterns: set[str]) -> bool:
    return any(fnmatch.fnmatch(distribution, pattern) for pattern in patterns)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def stop(sentence: str) -> NoReturn:
    raise SystemExit(sentence)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        stop('\nInterrupted; the same command continues.')
