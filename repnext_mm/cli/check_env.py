"""Say what is installed, and what is wrong with it; runs on the standard library alone, whatever else is broken."""

# One file that imports nothing of ours: `tools/check_env.py` runs it by its path, where the package cannot be imported.

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / 'tools' / 'check_env.py'
CLONE = SCRIPT.is_file() and (ROOT / 'setup.py').is_file()
# The versions that were tested together. Both lanes share their import names.
PINS = {
    'OneDL': {
        'torch': 'torch==2.11.0',
        'torchvision': 'torchvision==0.26.0',
        'numpy': 'numpy==2.2.6',
        'mmengine': 'onedl-mmengine==0.10.12',
        'mmcv': 'onedl-mmcv==2.3.6',
        'mmdet': 'onedl-mmdetection==3.5.1',
        'mmseg': 'onedl-mmsegmentation==1.4.2',
        'mmpretrain': 'onedl-mmpretrain==1.3.6',
        'cv2': 'opencv-python-headless==4.12.0.88',
    },
    'OpenMMLab': {
        'torch': 'torch==2.1.2',
        'torchvision': 'torchvision==0.16.2',
        'numpy': 'numpy==1.26.4',
        'mmengine': 'mmengine==0.10.7',
        'mmcv': 'mmcv==2.1.0',
        'mmdet': 'mmdet==3.3.0',
        'mmseg': 'mmsegmentation==1.2.2',
        'mmpretrain': 'mmpretrain==1.2.0',
        'cv2': 'opencv-python-headless==4.11.0.86',
    },
}
# What Python 3.14 needs instead, which the OpenMMLab lane does not have.
PINS_314 = {'numpy': 'numpy==2.4.6', 'cv2': 'opencv-python-headless==4.13.0.92'}
PYTHONS = (10, 14)  # 3.x, oldest and newest of any lane
MM = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')
MODULES = ('torch', 'torchvision', 'numpy', 'timm', 'cv2', *MM, 'mmcv.ops', 'repnext_mm')
# These import most of what they need with their models only; mmdet's import those of mmpretrain.
MODELS = ('mmpretrain', 'mmdet', 'mmseg')
MARK = '<check_env>'
# Runs in a process of its own, because an import may end it. The working directory must not count as installed.
PROBE = f"""
import sys
sys.path[:] = [path for path in sys.path if path]
import importlib, json
facts = dict()
try:
    module = importlib.import_module(sys.argv[1])
    facts.update(version=str(getattr(module, '__version__', '')), file=str(getattr(module, '__file__', '')))
    if sys.argv[1] == 'torch':
        facts.update(cuda=module.version.cuda, gpus=[module.cuda.get_device_name(gpu)
                                                     for gpu in range(module.cuda.device_count())])
    if sys.argv[1] == 'mmcv.ops':
        import torch
        module.nms(torch.tensor([[0., 0., 2., 2.]]), torch.ones(1), 0.5)
        facts.update(cuda=module.get_compiling_cuda_version(), compiler=module.get_compiler_version())
    if sys.argv[1] in {MODELS}:
        try:
            importlib.import_module(sys.argv[1] + '.models')
        except Exception as error:
            facts.update(models=f'{{type(error).__name__}}: {{error}}', lacks=getattr(error, 'name', None))
except ModuleNotFoundError as error:
    facts.update(error=f'{{type(error).__name__}}: {{error}}', missing=error.name == sys.argv[1].split('.')[0])
except BaseException as error:
    facts.update(error=f'{{type(error).__name__}}: {{error}}')
print('\\n{MARK}' + json.dumps(facts), flush=True)
"""


class Problem(NamedTuple):
    """One thing that is wrong, and the one command that fixes it."""

    what: str
    command: str


def main() -> int:
    """What `tools/check_env.py` does; `repnext check env` is the same."""
    parser = argparse.ArgumentParser(prog=SCRIPT.name, description=__doc__)
    add_options(parser)
    return run(parser.parse_args())


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--json', action='store_true', help='machine-readable, for a bug report')


def run(args: argparse.Namespace) -> int:
    """Import every package in a process of its own, and report; 1 if anything is to be fixed."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        facts = dict(pool.map(lambda module: (module, probe(module)), MODULES))
    lane = installed_lane()
    problems = find_problems(facts, lane)
    system = system_facts()
    if args.json:
        print(
            json.dumps(
                {
                    'system': system,
                    'lane': lane,
                    'packages': facts,
                    'problems': [problem._asdict() for problem in problems],
                },
                indent=2,
            )
        )
    else:
        show(system, lane, facts, problems)
    return 1 if problems else 0


def probe(module: str) -> dict[str, Any]:
    """Import a module in its own process: `version`, or `error`, and `missing` where there is nothing to import."""
    flags = ['-I'] * sys.flags.isolated + ['-S'] * sys.flags.no_site
    try:
        run = subprocess.run(
            [sys.executable, *flags, '-c', PROBE, module],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors='replace',
            timeout=300,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return {'error': f'{type(error).__name__}: {error}'}
    marked = [line for line in run.stdout.splitlines() if line.startswith(MARK)]
    try:
        facts: dict[str, Any] = json.loads(marked[-1][len(MARK) :])
        return facts
    except (IndexError, ValueError):
        pass  # it ended before the probe could answer
    said = (run.stderr.strip().splitlines() or ['it said nothing'])[-1]
    try:
        how = f'killed by {signal.Signals(-run.returncode).name}'
    except ValueError:
        how = f'exit code {run.returncode}'
    return {'error': f'importing it ended Python ({how}): {said[:300]}'}


def installed(distribution: str) -> str:
    """Version by the distribution's own record, '' where there is none; records can be broken in any way."""
    try:
        return metadata.version(distribution) or ''
    except Exception:
        return ''


def name(module: str, lane: str) -> str:
    return PINS[lane][module].split('==')[0]


def installed_lane() -> str:
    lanes = [lane for lane in PINS if any(installed(name(module, lane)) for module in MM)]
    return ' and '.join(lanes) or 'none'


def find_problems(facts: dict[str, dict[str, Any]], lane: str) -> list[Problem]:
    """Each with one command that fixes it, most fundamental first."""
    pip = f'{shlex.quote(sys.executable)} -m pip'
    hopeless = nothing_else_counts(facts, lane, pip)
    if hopeless:
        return [hopeless]
    problems: list[Problem] = []
    if not installed('pip'):
        command = f'{shlex.quote(sys.executable)} -m ensurepip --upgrade --default-pip'
        problems.append(Problem('pip is missing, which the commands below use.', command))
    problems += torch_problems(facts, lane, pip) + numpy_problems(facts, lane, pip)
    setuptools = numbers(installed('setuptools'))
    if not [77] <= setuptools < [81]:
        what = (
            f'setuptools {installed("setuptools") or "is missing"}: the mm packages need 77 to 80 (older ones reject '
            'them, newer ones lack pkg_resources).'
        )
        problems.append(Problem(what, f'{pip} install "setuptools>=77,<81"'))
    if 'error' in facts['cv2'] and 'error' not in facts['numpy'] and not facts['cv2'].get('missing'):
        command = f'{pip} install --force-reinstall --no-deps {pins_of(lane)["cv2"]}'
        problems.append(Problem(f'OpenCV does not import: {facts["cv2"]["error"]}', command))
    problems += mm_problems(facts, lane, pip) + own_problems(facts, pip) + operator_problems(facts, lane, pip)
    return problems or model_problems(facts, lane, pip)


def nothing_else_counts(facts: dict[str, dict[str, Any]], lane: str, pip: str) -> Problem | None:
    """What has to be fixed before anything else can be said."""
    oldest, newest = PYTHONS
    if not (3, oldest) <= sys.version_info[:2] <= (3, newest):
        what = f'Python {platform.python_version()}: the mm packages need 3.{oldest} to 3.{newest}.'
        return Problem(what, another_python(oldest, newest))
    if installed('mmcv-full'):
        what = 'mmcv-full is mmcv 1.x: it hides mmcv 2.x, which repnext_mm needs.'
        return Problem(what, f'{pip} uninstall -y mmcv-full mmcv')
    if ' and ' in lane:
        both = [name(module, each) for each in PINS for module in MM if installed(name(module, each))]
        what = 'Both lanes are installed, over one another in the same folders: remove both, run this again.'
        return Problem(what, f'{pip} uninstall -y {" ".join(both)}')
    if CLONE and lane == 'none' and all(facts[module].get('missing') for module in ('torch', *MM)):
        what = f'Nothing is installed for {sys.executable}: make the environment, then ask its own Python.'
        return Problem(what, f'make -C {shlex.quote(str(ROOT))} env && {ROOT / ".venv/bin/python"} {SCRIPT}')
    return None


def torch_problems(facts: dict[str, dict[str, Any]], lane: str, pip: str) -> list[Problem]:
    pins, problems = pins_of(lane), []
    torch, torchvision = installed('torch').split('+')[0], installed('torchvision').split('+')[0]
    both = f'{pip} install {pins["torch"]} {pins["torchvision"]}'
    if facts['torch'].get('missing'):
        problems.append(Problem('PyTorch is not installed.', both))
    elif 'error' in facts['torch']:
        problems.append(Problem(f'torch does not import: {facts["torch"]["error"]}', f'{both} --force-reinstall'))
    elif numbers(torch) and numbers(torch) < [2, 1]:
        problems.append(Problem(f'torch {torch} is too old: repnext_mm needs 2.1 or newer.', both))
    wanted = torch_of_torchvision()
    if torch and torchvision and wanted and wanted != torch:
        # pip knows which torchvision belongs to a torch; the numbers do not tell
        what = f'torchvision {torchvision} was built for torch {wanted}, but torch {torch} is there.'
        problems.append(Problem(what, f'{pip} install --upgrade torch=={installed("torch")} torchvision'))
    elif 'error' in facts['torchvision'] and 'error' not in facts['torch']:
        problems.append(Problem(f'torchvision does not import: {facts["torchvision"]["error"]}', both))
    return problems


def numpy_problems(facts: dict[str, dict[str, Any]], lane: str, pip: str) -> list[Problem]:
    pins, numpy = pins_of(lane), numbers(installed('numpy'))
    install = f'{pip} install {pins["numpy"]}'
    if facts['numpy'].get('missing'):
        return [Problem('numpy is not installed.', install)]
    if 'error' in facts['numpy']:
        command = f'{pip} install --force-reinstall --no-deps {pins["numpy"]}'
        return [Problem(f'numpy does not import: {facts["numpy"]["error"]}', command)]
    if lane == 'OneDL' and numpy and numpy[0] < 2:
        return [Problem(f'numpy {installed("numpy")} is too old: the OneDL lane needs 2.x.', install)]
    if lane == 'OpenMMLab' and numpy and numpy[0] >= 2:
        what = f'numpy {installed("numpy")} is too new: the OpenMMLab lane needs 1.x.'
        return [Problem(what, f'{install} {pins["cv2"]}')]
    return []


def pins_of(lane: str) -> dict[str, str]:
    """The tested versions for a lane and this Python."""
    pins = PINS.get(lane, PINS['OneDL'])
    return {**pins, **PINS_314} if lane != 'OpenMMLab' and sys.version_info >= (3, 14) else pins


def another_python(oldest: int, newest: int) -> str:
    """The command for a fitting Python: one that is on PATH, or that uv brings."""
    minors = range(newest, oldest - 1, -1)
    found = next((program for minor in minors if shutil.which(program := f'python3.{minor}')), None)
    if found:
        return f'make env PYTHON={found}' if CLONE else f'{found} -m venv .venv'
    return f'pip install uv && uv venv --python 3.{min(newest, 13)} --seed .venv' + (' && make env' if CLONE else '')


def mm_problems(facts: dict[str, dict[str, Any]], lane: str, pip: str) -> list[Problem]:
    pins = pins_of(lane)
    if lane == 'none' and all(facts[module].get('missing') for module in MM):
        packages = ' '.join(pins[module] for module in MM if module != 'mmcv')
        return [Problem('No mm packages are installed.', 'make env' if CLONE else f'{pip} install {packages}')]
    problems = []
    for module in ('mmengine', 'mmdet', 'mmseg', 'mmpretrain'):
        if 'error' not in facts[module] or 'error' in facts['torch']:
            continue
        if facts[module].get('missing') and module != 'mmengine':
            continue  # not everybody needs all three
        verb = 'is not installed.' if facts[module].get('missing') else f'does not import: {facts[module]["error"]}'
        if module == 'mmengine' or 'error' not in facts['mmengine']:
            problems.append(Problem(f'{module} {verb}', f'{pip} install --force-reinstall --no-deps {pins[module]}'))
    # Neither compiles: the one leaves the operators out where its build sees no torch, the other has none.
    python_only = f'{pip} install --force-reinstall --no-deps ' + (
        'mmcv-lite==2.1.0' if lane == 'OpenMMLab' else pins['mmcv']
    )
    if facts['mmcv'].get('missing'):
        problems.append(Problem('mmcv is not installed.', python_only))
    elif 'error' in facts['mmcv'] and 'error' not in facts['mmengine']:
        problems.append(Problem(f'mmcv does not import: {facts["mmcv"]["error"]}', python_only))
    return problems


def operator_problems(facts: dict[str, dict[str, Any]], lane: str, pip: str) -> list[Problem]:
    """What keeps `mmcv.ops` from importing, once the packages below it do."""
    ops, torch = facts['mmcv.ops'], facts['torch']
    if any('error' in facts[module] for module in ('torch', 'torchvision', 'mmengine', 'mmcv', 'repnext_mm')):
        return []
    folder = Path(facts['mmcv'].get('file', '')).parent
    compiled = any((folder / f'_ext{suffix}').is_file() for suffix in EXTENSION_SUFFIXES)
    ours = f'{shlex.quote(sys.executable)} -m repnext_mm.mmcv_ops install' + ' --set-aside' * compiled
    also = (
        'This puts those of repnext_mm in place, on torchvision; where mmcv is published compiled for this torch '
        f'and CUDA, mim install "{PINS.get(lane, PINS["OneDL"])["mmcv"]}" brings its own.'
    )
    if 'error' in ops:
        why = 'compiled for another torch or CUDA' if compiled else 'mmcv came without them'
        return [Problem(f"mmcv's operators do not load, {why}: {ops['error']}. {also}", ours)]
    if torch.get('gpus') and 'not available' in str(ops.get('cuda')):
        return [Problem(f"A GPU is there, but mmcv's operators are compiled for the CPU only. {also}", ours)]
    return []


def model_problems(facts: dict[str, dict[str, Any]], lane: str, pip: str) -> list[Problem]:
    """What keeps the models of a library from importing where all else is right: one problem, the rest follows it."""
    broken = [module for module in MODELS if 'models' in facts[module]]
    if not broken:
        return []
    error, lacking = facts[broken[0]]['models'], facts[broken[0]].get('lacks')
    what, transformers = f'The models of {" and ".join(broken)} do not import: {error}', installed('transformers')
    if numbers(transformers) >= [5] and 'NoneType' in error:
        what += f'. mmpretrain cannot be imported beside transformers {transformers}; it can beside 4.'
        return [Problem(what, f'{pip} install "transformers<5"')]
    if lacking and error.startswith('ModuleNotFoundError'):
        return [Problem(what, f'{pip} install {lacking.partition(".")[0]}')]
    return [Problem(what, f'{pip} install --force-reinstall --no-deps {pins_of(lane)[broken[0]]}')]


def own_problems(facts: dict[str, dict[str, Any]], pip: str) -> list[Problem]:
    own = facts['repnext_mm']
    if 'error' not in own or 'error' in facts['torch'] or 'error' in facts['mmengine']:
        return []
    verb = 'is not installed.' if own.get('missing') else f'does not import: {own["error"]}'
    where = f'-e {shlex.quote(str(ROOT))}' if CLONE else 'repnext_mm'
    return [Problem(f'repnext_mm {verb}', f'{pip} install --no-deps --no-build-isolation {where}')]


def torch_of_torchvision() -> str:
    """The torch that torchvision asks for, by its own record: '2.11.0', or '' where it does not say."""
    try:
        asked = metadata.requires('torchvision') or []
    except Exception:
        return ''
    for requirement in asked:
        text = requirement.replace('(', ' ').replace(')', ' ').replace(' ', '')
        if text.startswith('torch=='):
            return text[len('torch==') :].split(';')[0].split('+')[0]
    return ''


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split('+')[0].split('.') if part.isdigit()]


def system_facts() -> dict[str, str]:
    return {
        'platform': platform.platform(),
        'python': f'{platform.python_version()} ({sys.executable})',
        'virtual environment': 'yes' if sys.prefix != sys.base_prefix else 'no',
        'pip': installed('pip') or 'none',
        'setuptools': installed('setuptools') or 'none',
        'cores': str(os.cpu_count()),
        'C++ compiler': first_line(shlex.split(os.environ.get('CXX') or 'c++')[0], '--version'),
        'nvcc': first_line(
            str(Path(os.environ.get('CUDA_HOME', ''), 'bin', 'nvcc')) if os.environ.get('CUDA_HOME') else 'nvcc',
            '--version',
            last=True,
        ),
        'NVIDIA driver': first_line('nvidia-smi', '--query-gpu=driver_version,name', '--format=csv,noheader'),
    }


def first_line(*command: str, last: bool = False) -> str:
    if not shutil.which(command[0]):
        return 'none'
    try:
        run = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors='replace', timeout=30
        )
        lines = run.stdout.strip().splitlines() or run.stderr.strip().splitlines()
        return lines[-1 if last else 0] if lines else 'says nothing'
    except (OSError, subprocess.SubprocessError) as error:
        return f'{type(error).__name__}: {error}'


def show(system: dict[str, str], lane: str, facts: dict[str, dict[str, Any]], problems: list[Problem]) -> None:
    for title, text in {**system, 'lane': lane}.items():
        print(f'{title:20} {text}')
    for module, found in facts.items():
        text = found.get('version') or installed(module) or 'imports'
        if 'error' in found:
            text = 'not installed' if found.get('missing') else f'BROKEN  {found["error"]}'
        elif module == 'torch':
            text += f', CUDA {found.get("cuda") or "none"}, GPUs: {", ".join(found.get("gpus", [])) or "none"}'
        elif module == 'mmcv.ops':
            text = f'load; CUDA {found.get("cuda")}, compiler {found.get("compiler")}'
        print(f'{module:20} {text}')
    print()
    for number, problem in enumerate(problems, 1):
        print(f'{number}. {problem.what}\n   $ {problem.command}')
    print(f'{len(problems)} to fix, from the first down; then run this again.' if problems else 'All is right.')


if __name__ == '__main__':
    sys.exit(main())
