"""A hook that lets one process of a job fail at a known moment, once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

MESSAGE = 'this process fails on purpose'


@HOOKS.register_module()
class FaultHook(Hook):
    """After iteration ``iteration`` (from 1), process ``rank`` is killed, stopped, or raises; ``marker`` is written.

    A marker that is there means that it has happened: a restarted job goes on.
    """

    def __init__(self, *, how: str, iteration: int, marker: str, rank: int = 1) -> None:
        assert how in ('kill', 'stop', 'raise')
        self.how = how
        self.iteration = iteration
        self.marker = Path(marker)
        self.rank = rank

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if get_rank() != self.rank or runner.iter + 1 != self.iteration or self.marker.exists():
            return
        self.marker.touch()
        if self.how == 'raise':
            raise RuntimeError(MESSAGE)
        os.kill(os.getpid(), signal.SIGKILL if self.how == 'kill' else signal.SIGSTOP)
