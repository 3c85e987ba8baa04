"""What a measurement was made on: hardware, software and the switches that change speed."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

import repnext_mm.version as version

LIBRARIES = ('onnxruntime', 'onnx', 'openvino', 'timm', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'triton')
ONEDL = {'mmdet': 'onedl-mmdetection', 'mmsegmentation': 'onedl-mmsegmentation'}


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
