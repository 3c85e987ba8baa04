"""Starts tools from a process that has imported what all of them import, which takes seconds each time.

`running.run_tool` runs this file and writes a job per line, in JSON: the words behind ``python``, the folder, the
environment, the file for the output. The answer to each is a line, too: the status that the process ended with.
"""

from __future__ import annotations

import ast
import gc
import importlib
import json
import os
import random
import runpy
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

IMPORTED = ('mmdet.models', 'mmseg.models', 'mmpretrain.models', 'mmdet.apis', 'mmseg.apis', 'mmpretrain.apis')
THREADED = 'onnxruntime'
"""torch.onnx of PyTorch 2.1 imports it; it starts a thread, without which a forked process cannot end."""
SECONDS = 600


def leave_configs_as_they_are() -> None:
    """mmengine has yapf lay out a config two to five times in a run, half a second each; the text is valid without."""

    def checked(text: str, **_: object) -> tuple[str, bool]:
        ast.parse(text)
        return text, False

    with suppress(ImportError):
        importlib.import_module('yapf.yapflib.yapf_api').FormatCode = checked


def main() -> None:
    """Fork a process per job; only the forked ones return from here."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # for what is said while importing
    path = list(sys.path)  # PyTorch 2.1 adds a folder
    sys.modules[THREADED] = None  # type: ignore[assignment]  # so that its import fails
    for name in IMPORTED:
        with suppress(ImportError):  # not every environment has all
            importlib.import_module(name)
    del sys.modules[THREADED]
    leave_configs_as_they_are()
    sys.path[:] = path
    sys.stdout.flush()
    gc.freeze()
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            answers.close()
            become(job)
            return
        answers.write(f'{ended(child)}\n')
        answers.flush()
    os._exit(0)


def ended(child: int) -> int:
    """The exit status, or minus the signal; who takes too long is killed with all that it started."""
    for _ in range(SECONDS * 50):
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def become(job: dict[str, Any]) -> None:
    """Be what ``python WORDS`` would be in a new process."""
    os.setpgid(0, 0)
    output = os.open(job['output'], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.chdir(job['folder'])
    os.environ.clear()
    os.environ.update(job['environment'])
    tempfile.tempdir = None
    random.seed()
    if 'numpy' in sys.modules:
        sys.modules['numpy'].random.seed()
    words = job['words']
    if words[0] == '-m':
        sys.argv = words[1:]
        sys.path[0] = job['folder']
        runpy.run_module(words[1], run_name='__main__', alter_sys=True)
    else:
        script = Path(words[0]).absolute()
        sys.argv = list(words)
        sys.path[0] = str(script.resolve().parent)
        sys.modules['__main__'] = module = ModuleType('__main__')
        module.__file__ = str(script)
        exec(compile(script.read_bytes(), script, 'exec'), vars(module))


if __name__ == '__main__':
    main()
