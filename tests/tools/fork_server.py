"""Runs scripts in forks of a process that has libraries imported, which is most of the time of a short script.

Each script has a process of its own still: its own arguments, folder, output, random numbers and end. One line of JSON
in (``command``, ``cwd``, ``output``, ``environment``), the process id and then the exit code out.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec


def serve(modules: list[str]) -> list[str]:
    """Import what is there of ``modules``, then fork for each line; returns in the forks only, the command of each."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what libraries print when they are imported is no answer
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for name in modules:
            if find_spec(name.partition('.')[0]):
                import_module(name)
    sys.stdout.flush()  # else each fork would print it
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if not pid:
            become(job['cwd'], job['output'], job['environment'])
            return job['command']
        print(pid, file=answers, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)
    sys.exit()


def become(cwd: str, output: str, environment: dict[str, str]) -> None:
    """Make a fork what a new process would be; what is read of the environment at import is the server's."""
    os.environ.clear()
    os.environ.update(environment)
    os.setsid()  # so that all its own processes can be ended with it
    os.chdir(cwd)
    nothing, file = os.open(os.devnull, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for target, source in ((0, nothing), (1, file), (2, file)):
        os.dup2(source, target)
    random.seed()
    if numpy := sys.modules.get('numpy'):
        numpy.random.seed()


if __name__ == '__main__':
    script, *arguments = serve(sys.argv[1:])
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name='__main__')
