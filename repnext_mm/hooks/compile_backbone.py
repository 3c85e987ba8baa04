"""A hook that trains with a compiled backbone, and finds out first whether anything can be compiled here."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from repnext_mm.errors import UserError
from repnext_mm.reparam.checked import backbones_of

COMPILED_AT = 2
"""Training steps that may compile: the first, and the first of another image size, which makes sizes variable."""


@HOOKS.register_module()
class CompileBackboneHook(Hook):
    """Compile the backbone's training step, forward and backward, with ``torch.compile``; heads and optimizer stay.

    It is ``model.backbone``, or every outermost module inside with such a name. Heads take other ways from image to
    image and the optimizer has hundreds of parameters, for each of which mmengine's ``compile=True`` compiles anew. The
    compiled code is put aside for validation and tests, whose forward pass is another one; names of weights stay.
    What compiling cost is logged once.

    Raises:
        UserError: the model has no backbone, or there is no compiler, see ``check_compiler``.
    """

    priority = 'VERY_LOW'  # after those that copy or convert the model

    def __init__(self) -> None:
        self._made: dict[nn.Module, Any] = {}  # backbones and their compiled calls, while training lasts
        self._steps_s: list[float] = []
        self._start = 0.0

    def before_train(self, runner: Runner) -> None:
        """Compile: the code itself is made at the first step."""
        check_compiler(next(runner.model.parameters()).device.type)
        backbones = backbones_of(runner.model).values()
        if not backbones:
            raise UserError(f'{type(runner.model).__name__} has no backbone: remove CompileBackboneHook (--compile)')
        for backbone in backbones:
            backbone.compile()
        self._made = {backbone: backbone._compiled_call_impl for backbone in backbones}
        self._steps_s = []

    def before_val(self, runner: Runner) -> None:
        """Validate as without this hook."""
        for backbone in self._made:
            backbone._compiled_call_impl = None

    def after_val(self, runner: Runner) -> None:
        """Go on with the compiled code, which is not made anew."""
        for backbone, compiled in self._made.items():
            backbone._compiled_call_impl = compiled

    def after_train(self, runner: Runner) -> None:
        """Leave a model that can be fused, copied and exported."""
        self.before_val(runner)
        self._made = {}

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Look at the clock."""
        self._start = time.perf_counter()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Say what compiling cost, once there is a step to compare with."""
        if len(self._steps_s) > COMPILED_AT:
            return
        self._steps_s.append(time.perf_counter() - self._start)
        if len(self._steps_s) == COMPILED_AT + 1:
            *compiling, usual = self._steps_s
            print_log(
                f'CompileBackboneHook: the first {COMPILED_AT} steps took '
                f'{" and ".join(f"{seconds:.1f} s" for seconds in compiling)}, the next one {usual:.2f} s',
                logger='current',
            )


def check_compiler(device_type: str) -> None:
    """What ``torch.compile`` runs to make code for a device can be found.

    Raises:
        UserError: it cannot.
    """
    variable = 'CXX' if device_type == 'cpu' else 'CC'
    if device_type != 'cpu' and importlib.util.find_spec('triton') is None:
        raise UserError(
            'compiling for a GPU needs triton, which is not installed: pip install triton, or omit --compile'
        )
    known = {'CXX': {'win32': ('cl',), 'darwin': ('clang++',)}.get(sys.platform, ('g++',)), 'CC': ('gcc', 'clang')}
    named = os.environ.get(variable)
    candidates = (named,) if named else known[variable]
    if not any(shutil.which(candidate) for candidate in candidates):
        raise UserError(
            f'compiling needs a compiler, and there is no {" or ".join(candidates)} here: install one, name another in '
            f'the environment variable {variable}, or omit --compile and CompileBackboneHook'
        )
    header = Path(sysconfig.get_path('include')) / 'Python.h'
    if not header.is_file():
        raise UserError(
            f"compiling needs Python's header files, and there is no '{header}': install them (python3-dev or "
            'python3-devel), or omit --compile and CompileBackboneHook'
        )
