"""Running the command-line tools as a user does: in a process of their own, from another folder."""

from __future__ import annotations

import functools
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SECONDS = 600
"""A tool that takes longer is ended, and its test fails."""


class ForkServer:
    """``tests.tools.fork_server`` with modules imported, as a process beside this one, which ends with it."""

    def __init__(self, *modules: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'tests.tools.fork_server', *modules],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, words: list[str], cwd: Path) -> tuple[int, str]:
        """Exit code and output."""
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, 'output')
            job = {'command': words, 'cwd': str(cwd), 'output': str(output), 'environment': environment()}
            print(json.dumps(job), file=self.process.stdin)
            self.process.stdin.flush()
            pid = int(self.process.stdout.readline())
            overtime = threading.Timer(SECONDS, os.killpg, (pid, signal.SIGKILL))
            overtime.start()
            code = int(self.process.stdout.readline())
            overtime.cancel()
            return code, output.read_text(errors='replace')


fork_server = functools.cache(ForkServer)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, **more}


def run_tool(*command: str | Path, cwd: Path, expect: int = 0, **variables: str) -> str:
    """Run ``python COMMAND`` (or a shell script) in ``cwd``; returns stdout and stderr together."""
    words = [str(word) for word in command]
    done = subprocess.run(
        ['bash' if words[0].endswith('.sh') else sys.executable, *words],
        cwd=cwd,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
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
