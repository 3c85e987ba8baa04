"""The JSON record of a benchmark, written whole or not at all after each job, and what it was measured on."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import repnext_mm.version as version
from repnext_mm._files import drafted
from repnext_mm.errors import MissingFileError, UserError

FORMAT = 1
SAME_MACHINE = ('device', 'cpu', 'cpu_cores', 'threads', 'torch', 'python')
LIBRARIES = ('onnxruntime', 'onnx', 'openvino', 'timm', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'triton')
ONEDL = {'mmdet': 'onedl-mmdetection', 'mmsegmentation': 'onedl-mmsegmentation'}

Record = dict[str, Any]


def environment(device: torch.device | str = 'cpu') -> dict[str, object]:
    """Hardware, versions and settings as plain values for a JSON record; no names of users, hosts or folders.

    mmengine's ``collect_env`` gives neither a CPU's name nor the switches, but folders, and starts compilers to ask
    them for their version.
    """
    device = torch.device(device)
    on_gpu = device.type == 'cuda'
    found: dict[str, object] = {
        'date': datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
        'repnext_mm': version.__version__,
        'commit': _git_commit(Path(version.__file__).parents[1]),
        'device': torch.cuda.get_device_name(device) if on_gpu else _cpu_name(),
        'cpu': _cpu_name(),
        'cpu_cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1,
        'cpu_capability': torch.backends.cpu.get_cpu_capability(),
        'threads': torch.get_num_threads(),
        'os': f'{platform.system()} {platform.release()}',
        'python': platform.python_version(),
        'torch': torch.__version__,
        'libraries': {name: number for name in LIBRARIES if (number := _version(name))},
    }
    if on_gpu:
        driver = _output('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader') or ''
        found |= {
            'cuda': torch.version.cuda,
            'cudnn': torch.backends.cudnn.version(),
            'driver': next(iter(driver.splitlines()), None),
            'gpu_memory_gib': round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1),
            'tf32_matmul': torch.backends.cuda.matmul.allow_tf32,
            'tf32_cudnn': torch.backends.cudnn.allow_tf32,
            'cudnn_benchmark': torch.backends.cudnn.benchmark,
        }
    return found


def new_record(command: str, environment: dict[str, object], settings: dict[str, object]) -> Record:
    """An empty record: what was asked for and where; ``runs`` will hold one entry per job and repeat."""
    return {
        'format': FORMAT,
        'command': command,
        'environment': environment,
        'settings': settings,
        'skipped': [],
        'runs': [],
    }


def write_record(record: Record, path: str | os.PathLike[str]) -> None:
    """Write a record so that the file is always complete: what was there stays until the new one is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = re.sub(r'\[\n[\s\d.,eE+-]+\]', _on_one_line, json.dumps(record, indent=1, allow_nan=False))
    with drafted(path) as draft:
        draft.write_text(text + '\n')


def read_record(path: str | os.PathLike[str]) -> Record:
    """Read a record.

    Raises:
        UserError: there is no such file, or it is not a record.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f'no benchmark record at {path}: give the JSON file that tools/benchmark.py wrote')
    try:
        record = json.loads(path.read_text())
    except ValueError as failure:
        raise UserError(f'{path} is not JSON ({failure}): give the file that tools/benchmark.py wrote') from failure
    if not isinstance(record, dict) or record.get('format') != FORMAT or 'runs' not in record:
        raise UserError(f'{path} is not an inference record of format {FORMAT}: give what tools/benchmark.py wrote')
    return record


def check_same_machine(record: Record, environment: dict[str, object]) -> None:
    """Refuse to add to a record what was measured elsewhere.

    Raises:
        UserError: hardware or software differ.
    """
    for key in SAME_MACHINE:
        before, now = record['environment'].get(key), environment.get(key)
        if before != now:
            raise UserError(
                f'cannot resume: the record was measured with {key} {before!r}, this is {now!r}; '
                'write to another --output'
            )


def without_nan(value: Any) -> Any:
    """Plain values for JSON, which has no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _on_one_line(numbers: re.Match[str]) -> str:
    return json.dumps([round(number, 4) for number in json.loads(numbers[0])])


def _cpu_name() -> str:
    """The CPU's model name where the system gives it, else its architecture."""
    with suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()


def _git_commit(clone: Path) -> str | None:
    """The commit of the clone that this package runs from, with ``+changes`` where files differ from it."""
    if not (clone / '.git').exists():
        return None
    commit = _output('git', '-C', str(clone), 'rev-parse', '--short=12', 'HEAD')
    changed = _output('git', '-C', str(clone), 'status', '--porcelain', '--untracked-files=no')
    return f'{commit}+changes' if commit and changed else commit


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _version(name: str) -> str | None:
    for distribution in (name, ONEDL.get(name, f'onedl-{name}')):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
    return None
