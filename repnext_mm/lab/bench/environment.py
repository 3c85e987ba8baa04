"""What a measurement ran on: hardware, software and the switches that change speed."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

from repnext_mm.version import __version__

LIBRARIES = ('onnxruntime', 'onnx', 'openvino', 'timm', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'triton')
ONEDL = {'mmdet': 'onedl-mmdetection', 'mmsegmentation': 'onedl-mmsegmentation'}


def environment(device: torch.device | str = 'cpu') -> dict[str, object]:
    """Hardware, versions and settings as plain values for a JSON record; no names of users, hosts or folders."""
    device = torch.device(device)
    found: dict[str, object] = {
        'date': datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
        'repnext_mm': __version__,
        'commit': git_commit(),
        'device': device_name(device),
        'cpu': cpu_name(),
        'cpu_cores': available_cores(),
        'cpu_capability': torch.backends.cpu.get_cpu_capability(),
        'threads': torch.get_num_threads(),
        'os': f'{platform.system()} {platform.release()}',
        'python': platform.python_version(),
        'torch': torch.__version__,
        'libraries': {name: version for name in LIBRARIES if (version := _version(name))},
    }
    if device.type == 'cuda':
        found |= {
            'cuda': torch.version.cuda,
            'cudnn': torch.backends.cudnn.version(),
            'driver': _nvidia_driver(),
            'gpu_memory_gib': round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1),
            'tf32_matmul': torch.backends.cuda.matmul.allow_tf32,
            'tf32_cudnn': torch.backends.cudnn.allow_tf32,
            'cudnn_benchmark': torch.backends.cudnn.benchmark,
        }
    return found


def device_name(device: torch.device | str) -> str:
    """The name of the GPU, or of the CPU."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu_name()


def cpu_name() -> str:
    """The CPU's own name where the system tells it, else its architecture."""
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """Logical cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def git_commit() -> str | None:
    """The commit of the clone that this package runs from, with ``+changes`` where files differ from it."""
    folder = Path(__file__).parents[2]
    if not (folder / '.git').exists():
        return None
    commit = _output('git', '-C', str(folder), 'rev-parse', '--short=12', 'HEAD')
    changed = _output('git', '-C', str(folder), 'status', '--porcelain', '--untracked-files=no')
    return f'{commit}+changes' if commit and changed else commit


def _nvidia_driver() -> str | None:
    found = _output('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader')
    return found.splitlines()[0] if found else None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _version(name: str) -> str | None:
    for distribution in (name, ONEDL.get(name, f'onedl-{name}')):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None
