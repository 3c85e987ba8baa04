"""Running the command-line tools as a user does: in a process of their own, from another folder."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_tool(*command: str | Path, cwd: Path, expect: int = 0, **environment: str) -> str:
    """Run ``python COMMAND`` (or a shell script) in ``cwd``; returns stdout and stderr together."""
    words = [str(word) for word in command]
    start = ['bash'] if words[0].endswith('.sh') else [sys.executable]
    done = subprocess.run(
        start + words,
        cwd=cwd,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == expect, done.stdout[-6000:]
    return done.stdout


def options(**values: Any) -> list[str]:
    """``--cfg-options`` from keywords, two underscores for a dot."""
    return ['--cfg-options', *(f'{key.replace("__", ".")}={value}' for key, value in values.items())]


def metrics(output: str, name: str) -> float:
    """The last value of a metric in a log."""
    return float(re.findall(rf'{re.escape(name)}: +(-?[\d.]+|nan)', output)[-1])


def predictions(path: Path) -> list[dict[str, Any]]:
    """What ``--out`` wrote."""
    with path.open('rb') as file:
        return pickle.load(file)
