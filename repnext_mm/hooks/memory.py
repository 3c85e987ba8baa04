"""A hook that gives freed memory back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from repnext_mm.errors import UserError


@HOOKS.register_module()
class ReturnMemoryHook(Hook):
    """Give freed memory back to the system after each epoch, and every ``interval`` training iterations.

    Tensors whose sizes change from step to step, as a detector's do, leave glibc's heap in pieces, which it keeps: on
    a CPU the process grows for hours although nothing is leaked. Where the C library cannot be asked (macOS, Windows,
    musl), this does nothing.

    Raises:
        UserError: ``interval`` is below 1.
    """

    priority = 'VERY_LOW'  # after those that hold something until the epoch's end

    def __init__(self, interval: int = 500) -> None:
        if interval < 1:
            raise UserError(f'interval={interval} must be a number of iterations, at least 1')
        self.interval = interval

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Trainings without epochs have only this."""
        if self.every_n_train_iters(runner, self.interval):
            return_memory()

    def after_train_epoch(self, runner: Runner) -> None:
        """Give back what training freed."""
        return_memory()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Give back what validation freed."""
        return_memory()

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Give back what the test freed."""
        return_memory()


def return_memory() -> bool:
    """Ask the C library to give freed memory back; False where it cannot be asked, or had none."""
    trim = malloc_trim()
    return bool(trim and trim(0))


def malloc_trim() -> Callable[[int], int] | None:
    """The C library's function that gives freed memory back; None where it has none."""
    try:
        found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    except (OSError, TypeError):  # Windows
        return None
    return found
