"""A hook that tests the fused backbone and leaves the trained model as it was."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from torch import nn

from repnext_mm import timing
from repnext_mm.errors import UserError
from repnext_mm.reparam import FusionError, FusionReport, fuse_checked
from repnext_mm.reparam.checked import backbones_of, check_tolerance
from repnext_mm.reparam.fusible import Form, check_form
from repnext_mm.reparam.surgery import replaced


@HOOKS.register_module()
class FuseBackboneHook(Hook):
    """Fuse the backbone for the test epoch, verified; the trained model comes back untouched.

    It is ``model.backbone``, or every outermost module inside with such a name: of wrappers, of student and teacher.
    Any backbone, see ``repnext_mm.reparam.fuse_checked``, which does the work.

    ``runner.model`` is exchanged for a model that has the fused backbone and shares everything else, so that hooks
    that hold on to the trained model (EMA, checkpoints) keep a model of unchanged structure. It is fused after EMA
    has swapped its weights in. Data-parallel wrappers are left out for the test, which needs no gradients.

    Args:
        form: a form of ``repnext_mm.reparam.fuse``; or ``'auto'``, which measures all forms on this machine, stage by
            stage, and takes the fastest.
        auto_size: height and width in pixels of the image that ``'auto'`` measures with.
        tolerance: the largest accepted relative error per level, on a random probe, against the unfused backbone.
            For half precision it is at least ``16`` roundings.
        compile: compile the fused backbone with ``torch.compile`` (mmengine compiles only training). Verified before.

    Raises:
        ValueError: ``form`` is unknown, ``tolerance`` is not a positive number, ``compile`` not a bool, or
            ``auto_size`` not a size of at least 32 pixels.
    """

    priority = 'LOW'  # after EMAHook (NORMAL) before the epoch

    def __init__(
        self,
        form: Form = 'default',
        tolerance: float = 1e-4,
        compile: bool = False,
        auto_size: tuple[int, int] = (512, 512),
    ) -> None:
        if form != 'auto':
            check_form(form)
        if not _is_size(auto_size):
            raise UserError(f'auto_size {auto_size!r} must be the height and width of an image, at least 32 pixels')
        check_tolerance(tolerance)
        if not isinstance(compile, bool):
            raise UserError(f'compile {compile!r} must be True or False')
        self.form = form
        self.tolerance = tolerance
        self.compile = compile
        self.auto_size = (auto_size[0], auto_size[1])
        self._trained: tuple[nn.Module, dict[nn.Module, bool]] | None = None

    def before_run(self, runner: Runner) -> None:
        """Restore the trained model even if the test raises."""
        # mmengine calls no hook when a loop raises, and builds the test loop when it is first asked for
        if isinstance(runner._test_loop, BaseLoop):
            self._guard(runner, runner._test_loop)
        elif not hasattr(runner.build_test_loop, 'guarded'):
            build = runner.build_test_loop

            @wraps(build)
            def build_guarded(loop: Any) -> BaseLoop:
                return self._guard(runner, build(loop))

            build_guarded.guarded = True  # type: ignore[attr-defined]
            runner.build_test_loop = build_guarded

    def before_test_epoch(self, runner: Runner) -> None:
        """Exchange ``runner.model`` for one with a fused backbone."""
        self._restore(runner)  # a test that was stopped from outside
        model = runner.model
        flags = {module: module.training for module in model.modules()}
        fused, report = self.fuse_backbone(model)
        if report:
            self._trained = model, flags
            runner.model = fused

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Put the trained model back."""
        self._restore(runner)

    def fuse_backbone(self, model: nn.Module) -> tuple[nn.Module, FusionReport]:
        """``fuse_checked`` with the hook's settings, for models with a backbone; needs no runner."""
        if not backbones_of(model):
            print_log(f'{type(model).__name__} has no backbone, nothing is fused', 'current', logging.WARNING)
            return model, FusionReport(self.form, (), 0, 0, 0, 0)
        form = timing.fastest_at(self.auto_size) if self.form == 'auto' else self.form
        try:
            fused, report = fuse_checked(model, form=form, tolerance=self.tolerance)
        except FusionError as error:
            raise FusionError(f'{error}: remove FuseBackboneHook') from error
        return _compiled(fused, source=model) if self.compile else fused, report

    def _guard(self, runner: Runner, loop: BaseLoop) -> BaseLoop:
        run: Callable[[], Any] = loop.run
        if not hasattr(run, 'guarded'):

            @wraps(run)
            def run_guarded() -> Any:
                try:
                    return run()
                finally:
                    self._restore(runner)

            run_guarded.guarded = True  # type: ignore[attr-defined]
            loop.run = run_guarded  # type: ignore[method-assign]
        return loop

    def _restore(self, runner: Runner) -> None:
        if self._trained is not None:
            runner.model, flags = self._trained
            for module, training in flags.items():
                module.training = training
            self._trained = None


class _ToCurrentLogger(logging.Handler):
    """Hands what the package logs to the logger of the run, which mmengine keeps apart from Python's."""

    def emit(self, record: logging.LogRecord) -> None:
        print_log(record.getMessage(), logger='current', level=record.levelno)


_own = logging.getLogger('repnext_mm')
if not _own.handlers:  # the user's own come first
    _own.addHandler(_ToCurrentLogger())
    _own.setLevel(logging.DEBUG)  # the run's logger decides
    _own.propagate = False


def _compiled(fused: nn.Module, *, source: nn.Module) -> nn.Module:
    """A model whose new backbones are compiled."""
    new = set(backbones_of(fused).values()) - set(source.modules())
    return replaced(fused, lambda _, module: cast(nn.Module, torch.compile(module)) if module in new else None)


def _is_size(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(x, int) and x >= 32 for x in value)
