"""Small jobs of several processes: their configs, a way to run them that leaves nothing running, what they wrote."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ANY_ERROR = -1
TINY = 'dict(_delete_=True, embed_dims=(8, 16, 32, 64), depths=(1, 1, 1, 1))'
SIDE = 128
SCENES = f'dict(train=8, val=5, size={SIDE})'  # five do not divide by two nor by four
CONFIGS = {
    'detection': f"""
_base_ = ['{ROOT}/configs/mask_rcnn_repnext_m0_digits.py']
model = dict(
    backbone=dict(arch={TINY}),
    neck=dict(in_channels=[8, 16, 32, 64]),
    test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=20)),  # a network that has learned little has no high scores
)
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(scenes={SCENES}))
val_dataloader = dict(num_workers=0, dataset=dict(scenes={SCENES}))
test_dataloader = dict(num_workers=0, dataset=dict(scenes={SCENES}))
train_cfg = dict(max_epochs=2, val_interval=2)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1, max_keep_ckpts=3))
randomness = dict(seed=0)
""",
    'segmentation': f"""
_base_ = ['{ROOT}/configs/semantic_fpn_repnext_m0_digits.py']
model = dict(backbone=dict(arch={TINY}), neck=dict(in_channels=[8, 16, 32, 64]))
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(scenes={SCENES}))
val_dataloader = dict(num_workers=0, dataset=dict(scenes={SCENES}))
test_dataloader = dict(num_workers=0, dataset=dict(scenes={SCENES}))
train_cfg = dict(max_iters=4, val_interval=4)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2, max_keep_ckpts=3))
randomness = dict(seed=0)
""",
    'classification': f"""
_base_ = ['{ROOT}/configs/repnext_m0_digits_cls.py']
model = dict(backbone=dict(arch={TINY}), head=dict(in_channels=64))
train_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(indices={list(range(0, 1433, 45))}))
val_dataloader = dict(batch_size=1, num_workers=0, dataset=dict(indices={list(range(0, 364, 9))}))
test_dataloader = dict(batch_size=1, num_workers=0, dataset=dict(indices={list(range(0, 364, 9))}))
train_cfg = dict(max_epochs=3, val_interval=3)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1, max_keep_ckpts=3))
randomness = dict(seed=0)
""",
}


def write_config(folder: Path, task: str, name: str | None = None, more: str = '') -> Path:
    """A config that trains for seconds; ``more`` lines may add to it."""
    path = folder / f'{name or task}.py'
    path.write_text(CONFIGS[task] + more)
    return path


def fault(folder: Path, how: str, iteration: int) -> tuple[str, Path]:
    """Lines for a config whose second process fails, and the marker that this leaves."""
    marker = folder / 'failed'
    lines = f"""
custom_imports = dict(
    imports=['repnext_mm', 'tests.reliability.faults', 'tests.reliability.late_start'], allow_failed_imports=False
)
custom_hooks = [
    dict(type='FuseBackboneHook'),
    dict(type='FaultHook', how='{how}', iteration={iteration}, marker='{marker}'),
]
"""
    return lines, marker


def start_job(*command: str | Path | int, cwd: Path, log: str, **environment: str) -> subprocess.Popen[bytes]:
    """Start a tool or a shell script in ``cwd``; what it says goes to the file ``log`` there."""
    words = [str(word) for word in command]
    start = ['bash'] if words[0].endswith('.sh') else [sys.executable]
    defaults = {'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, 'PYTHONPATH': str(ROOT), 'PORT': free_port()}
    with (cwd / log).open('wb') as file:
        return subprocess.Popen(
            start + words, cwd=cwd, env={**os.environ, **defaults, **environment}, stdout=file, stderr=file
        )


def end_job(job: subprocess.Popen[bytes], *, cwd: Path, log: str, expect: int = 0, within: float = 400) -> str:
    """Wait for a job; all of it must be gone then. Returns what it said."""
    try:
        code = job.wait(within)
        gone_by = time.monotonic() + 5
        while (left := processes(cwd)) and time.monotonic() < gone_by:
            time.sleep(0.1)
    finally:
        for pid in processes(cwd):  # launchers give their workers sessions of their own
            os.kill(pid, signal.SIGKILL)
        job.kill()
        job.wait()
    output = (cwd / log).read_text()
    assert code != 0 if expect == ANY_ERROR else code == expect, output[-6000:]
    assert left == [], f'processes outlive their job: {left}\n{output[-3000:]}'
    return output


def run_job(*command: str | Path | int, cwd: Path, expect: int = 0, within: float = 400, **environment: str) -> str:
    """Start a job and wait for its end."""
    log = f'{time.monotonic_ns()}.log'
    job = start_job(*command, cwd=cwd, log=log, **environment)
    return end_job(job, cwd=cwd, log=log, expect=expect, within=within)


def processes(folder: Path) -> list[int]:
    """The processes whose command line names something in a folder."""
    found = []
    for entry in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            command = entry.read_bytes()
        except OSError:  # it has just ended
            continue
        if str(folder).encode() in command and int(entry.parent.name) != os.getpid():
            found.append(int(entry.parent.name))
    return found


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def metrics_of(work_dir: Path) -> dict[str, Any]:
    """All metrics that a test wrote, in full precision."""
    (path,) = work_dir.glob('*/*.json')
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in ('time', 'data_time')}
