"""Running the command-line tools as a user does: in a process of their own, from another folder."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.conftest import VARIABLES
from tests.tools.starter import SECONDS

ROOT = Path(__file__).parents[2]


FRESH = 'REPNEXT_MM_FRESH_PROCESSES'
"""Set, each tool has a process that imports everything anew, as on the command line; 4 to 10 s more for each."""
FORKS = hasattr(os, 'fork') and not torch.cuda.is_available()
"""CUDA does not outlive a fork: with a GPU, each tool has a process of its own, and uses it."""
MAY_DIFFER = ('PYTEST_', 'REPNEXT_', 'TMPDIR')
"""Variables that nothing reads while it is imported."""


def run_tool(*command: str | Path, cwd: Path, expect: int = 0, **environment: str) -> str:
    """Run ``python COMMAND`` (or a shell script) in ``cwd``; returns stdout and stderr together.

    The process is forked from one that has imported the mm packages, unless the environment was changed since.
    """
    words = [str(word) for word in command]
    variables = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, **environment}
    starter = None if words[0].endswith('.sh') or variables.get(FRESH) else _starter()
    if starter and starter.fits(variables):
        status, output = starter.run(words, cwd, variables)
    else:
        start = ['bash'] if words[0].endswith('.sh') else [sys.executable]
        done = subprocess.run(
            start + words,
            cwd=cwd,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )
        status, output = done.returncode, done.stdout
    assert status == expect, output[-6000:]
    return output


class _Starter:
    def __init__(self) -> None:
        # not what the first test that starts a tool happens to set
        self.environment = {**VARIABLES, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable}
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).parent / 'starter.py'],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    def fits(self, environment: dict[str, str]) -> bool:
        """Whether what is imported here would be the same in that environment."""
        names = {*self.environment, *environment}
        changed = {name for name in names if self.environment.get(name) != environment.get(name)}
        return all(name.startswith(MAY_DIFFER) for name in changed)

    def run(self, words: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
        with tempfile.NamedTemporaryFile('r', errors='replace') as output:
            job = {'words': words, 'folder': str(folder), 'environment': environment, 'output': output.name}
            assert self.process.stdin and self.process.stdout
            print(json.dumps(job), file=self.process.stdin, flush=True)
            status = self.process.stdout.readline()
            assert status, 'tests/tools/starter.py ended'
            return int(status), output.read()


@cache
def _starter() -> _Starter | None:
    return _Starter() if FORKS else None


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
