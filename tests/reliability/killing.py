"""Starting a training as a user does, killing its process group from outside, and seeing what it left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from repnext_mm._files import DRAFT_SUFFIX
from repnext_mm.checkpoints import read_checkpoint
from repnext_mm.hooks.resume import is_whole
from tests.tools.running import ROOT

PATIENCE_S = 180
TICK_S = 0.0003


class Training:
    """``tools/train.py`` in a session of its own; ``with`` leaves no process behind."""

    def __init__(self, config: Path, work_dir: Path, log: Path, *, resume: bool) -> None:
        words = [str(ROOT / 'tools/train.py'), str(config), '--work-dir', str(work_dir), *['--resume'] * resume]
        self.work_dir, self.log = work_dir, log
        self._output = log.open('wb')
        self._process = subprocess.Popen(
            [sys.executable, *words],
            cwd=config.parent,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._output.close()

    def kill(self) -> None:
        """SIGKILL for the process and its workers."""
        with suppress(ProcessLookupError):  # it had ended, and its workers with it
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def finish(self) -> None:
        """Let it end by itself, as it should."""
        code = self._process.wait(timeout=15 * 60)
        assert code == 0, f'the tool ended with {code}:\n{self.text()[-4000:]}'

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Return at once when it holds; a training that ends before is a fault of the test."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert self._process.poll() is None, f'it ended before it was killed:\n{self.text()[-4000:]}'
            assert time.monotonic() < end, f'nothing happened in {PATIENCE_S} s:\n{self.text()[-4000:]}'
            time.sleep(TICK_S)

    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors='replace')

    def resumed(self) -> tuple[int, int] | None:
        """Epoch and iteration that it said it goes on from."""
        found = re.search(r'resumed epoch: (\d+), iter: (\d+)', self.text())
        return None if found is None else (int(found[1]), int(found[2]))

    def doing(self) -> str:
        """What it was at, by its last line: the phase, and its count."""
        lines = re.findall(r'(?:Epoch|Iter)\((train|val)\)\s+((?:\[ *\d+(?:/ *\d+)?\])+)', self.text())
        return f'{lines[-1][0]} {lines[-1][1]}' if lines else 'starting'


def drafts(folder: Path) -> list[str]:
    """Checkpoints that are being written, or were when a kill came."""
    try:
        found = [entry.name for entry in os.scandir(folder) if entry.name.endswith(DRAFT_SUFFIX)]
    except FileNotFoundError:
        return []
    return sorted(name for name in found if re.match(r'\.(epoch|iter|best)_', name))


def recorded_at(folder: Path) -> int:
    """When the last checkpoint was recorded, in nanoseconds; 0 if none was."""
    try:
        return (folder / 'last_checkpoint').stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def newest(folder: Path) -> tuple[str, int, int] | None:
    """Name, epoch and iteration of the checkpoint to go on from; every file that bears a name has to be whole."""
    paths = [path for path in folder.glob('*.pth') if not path.name.startswith('.')]
    torn = [path.name for path in paths if not is_whole(path)]
    assert not torn, f'torn checkpoints: {torn}'
    record = folder / 'last_checkpoint'
    if record.exists():
        assert Path(record.read_text()).is_file(), f'last_checkpoint names {record.read_text()!r}'
    steps = {int(found[1]): path for path in paths if (found := re.fullmatch(r'(?:epoch|iter)_(\d+)', path.stem))}
    if not steps:
        assert not record.exists()
        return None
    path = steps[max(steps)]
    meta = read_checkpoint(path)['meta']
    return path.name, meta['epoch'], meta['iter']
