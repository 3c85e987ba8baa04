"""A hook that tests the fused backbone and leaves the trained model as it was."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, cast

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from repnext_mm.errors import UserError
from repnext_mm.reparam import (
    Form,
    Fusible,
    FusionReport,
    anchored,
    check_form,
    fuse,
    generators_kept,
    relative_error,
    replaced,
    sharded,
    state_kept,
    within,
)

PROBE_SIZE = (65, 97)  # odd, and not square: borders and axes count
USUAL_SIZE = (224, 224)  # for backbones that take one size
HALF_PRECISION_ROUNDINGS = 16  # a fused half-precision weight is rounded once more than its branches


@HOOKS.register_module()
class FuseBackboneHook(Hook):
    """Fuse the backbone for the test epoch, verified; the trained model comes back untouched.

    It is ``model.backbone``, or every outermost module inside with such a name: of wrappers, of student and teacher.

    Any backbone: RepNeXt, those that bring a method for it (see ``repnext_mm.reparam.converters``), and all with plain
    convolutions and batch norms.

    ``runner.model`` is exchanged for a model that has the fused backbone and shares everything else, so that hooks
    that hold on to the trained model (EMA, checkpoints) keep a model of unchanged structure. It is fused after EMA
    has swapped its weights in. Data-parallel wrappers are left out for the test, which needs no gradients.

    Args:
        form: a form of ``repnext_mm.reparam.fuse``; or ``'auto'``, which measures all forms here and now, stage by
            stage, and takes the fastest.
        auto_size: height and width in pixels of the image that ``'auto'`` measures with.
        tolerance: the largest accepted relative error per level, on a random probe, against the unfused backbone.
            For half precision it is at least ``16`` roundings.
        compile: compile the fused backbone with ``torch.compile`` (mmengine compiles only training). Verified before.

    Raises:
        ValueError: ``form`` is unknown, ``tolerance`` is no positive number, ``compile`` no bool, or ``auto_size``
            no size of at least 32 pixels.
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
        if not _is_number(tolerance) or not 0 < tolerance < math.inf:
            raise UserError(f'tolerance {tolerance!r} must be a positive number')
        if not isinstance(compile, bool):
            raise UserError(f'compile {compile!r} must be True or False')
        self.form = form
        self.tolerance = tolerance
        self.compile = compile
        self.auto_size = tuple(auto_size)
        self._trained: tuple[nn.Module, dict[nn.Module, bool]] | None = None

    def before_run(self, runner: Runner) -> None:
        """See to it that a test that raises still puts the trained model back."""
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
        """Fuse and verify the backbone of a model, or its backbones; needs no runner.

        Args:
            model: a model with a ``backbone``, possibly inside wrappers (data-parallel, test-time augmentation), or
                with several, as a student and a teacher have.

        Returns:
            A model with the fused backbone in eval mode, sharing the rest with ``model``, which is unchanged; and the
            report, falsy when there was nothing to fuse (the model is then returned as it came).

        Raises:
            RuntimeError: the fused backbone is not within the tolerance of the original.
        """
        if sharded(model):
            return self._nothing(model, f'{type(model).__name__} is sharded (FSDP): its weights are in pieces')
        bare = _without_data_parallel(model)
        backbones = dict(_backbones_of(bare))
        if not backbones:
            return self._nothing(model, f'{type(bare).__name__} has no backbone')
        flags = {module: module.training for module in bare.modules()}
        new: dict[nn.Module, nn.Module] = {}
        reports: dict[str, FusionReport] = {}
        try:
            for name, backbone in backbones.items():
                fused, report = self._fused(backbone)
                reports[name] = report
                if report:
                    new[backbone] = fused
        finally:
            for module, training in flags.items():
                module.training = training
        for fused in new.values():
            fused.eval()
        report = _joined(reports, self.form)
        if not new:
            return model, report
        result = replaced(bare, lambda _, module: _compiled(new[module], self.compile) if module in new else None)
        if any(module in new for module in result.modules()):
            reason = next(iter(anchored(bare).items()))
            return self._nothing(model, f'a copy of {type(reason[0]).__name__} would not take its place: {reason[1]}')
        return result, report

    def _fused(self, backbone: nn.Module) -> tuple[nn.Module, FusionReport]:
        name = type(backbone).__name__
        backbone.eval()
        with generators_kept(), state_kept(backbone):
            probe = _probe(backbone)
            if probe is None:
                return self._nothing(backbone, f'{name} takes no image to verify it with')
            form = self._fastest(backbone) if self.form == 'auto' else self.form
            fused, report = fuse(backbone, form=form, probe=probe)
            if report.refused:
                _warn(
                    f'FuseBackboneHook leaves {len(report.refused)} modules as they are: '
                    + '; '.join(report.refused[:3])
                )
            if not report:
                _warn(f'FuseBackboneHook: {name} has nothing to fuse: not re-parameterizable, or fused already')
                return backbone, report
            errors = self._verify(fused, backbone, probe)
        print_log(
            f'{name}: {report}; relative error {max(errors):.1e} over {len(errors)} levels',
            logger='current',
        )
        return fused, report

    def _nothing(self, model: nn.Module, reason: str) -> tuple[nn.Module, FusionReport]:
        _warn(f'FuseBackboneHook: {reason}, nothing is fused')
        return model, FusionReport(self.form, (), 0, 0, 0, 0)

    def _fastest(self, backbone: nn.Module) -> Form:
        if not any(isinstance(module, Fusible) for module in backbone.modules()) or not fuse(backbone)[1]:
            return 'default'  # nothing to choose from
        from repnext_mm.timing import fastest_form  # it is slow, and rarely asked for

        form = fastest_form(backbone, _noise(backbone, *self.auto_size))
        chosen = ', '.join(f'{part or "all"}: {name}' for part, name in form.items())
        height, width = self.auto_size
        print_log(f'{type(backbone).__name__}: fastest forms at {height}x{width} pixels: {chosen}', logger='current')
        return form

    def _verify(self, fused: nn.Module, backbone: nn.Module, probe: Tensor) -> tuple[float, ...]:
        errors = relative_error(fused, backbone, probe)
        tolerance = self.tolerance
        if probe.dtype in (torch.float16, torch.bfloat16):
            tolerance = max(tolerance, HALF_PRECISION_ROUNDINGS * torch.finfo(probe.dtype).eps)
        if not within(errors, tolerance):
            listed = ', '.join(f'{error:.1e}' for error in errors)
            raise RuntimeError(
                f'fused backbone differs from the trained one by {listed} (relative, per level), more than '
                f'{tolerance:.1e}: look for NaN or extreme norm statistics in the weights (a few steps of training '
                'leave such), or remove FuseBackboneHook'
            )
        return errors

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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(x, int) and x >= 32 for x in value)


def _without_data_parallel(model: nn.Module) -> nn.Module:
    while is_model_wrapper(model):
        model = cast(nn.Module, model.module)
    return model


def _backbones_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules that are called a backbone, wherever wrappers (student and teacher, TTA) have put them."""
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f'{outer}.') for outer in found)
        if name.endswith('backbone') and not inside:
            found.append(name)
            yield name, module


def _compiled(fused: nn.Module, wanted: bool) -> nn.Module:
    return cast(nn.Module, torch.compile(fused)) if wanted else fused


def _joined(reports: Mapping[str, FusionReport], form: Form) -> FusionReport:
    """One report about all backbones; names are those in a backbone where there is one, and else in the model."""
    if len(reports) == 1:
        return next(iter(reports.values()))
    forms = {
        '.'.join(filter(None, (name, part))): chosen
        for name, report in reports.items()
        for part, chosen in ({'': report.form} if isinstance(report.form, str) else report.form).items()
    }
    parts = list(reports.items())
    return FusionReport(
        forms if form == 'auto' else form,
        tuple(f'{name}.{module}' for name, report in parts for module in report.modules),
        sum(report.parameters_before for _, report in parts),
        sum(report.parameters_after for _, report in parts),
        sum(report.norms_before for _, report in parts),
        sum(report.norms_after for _, report in parts),
        tuple(f'{name}.{reason}' for name, report in parts for reason in report.refused),
    )


def _probe(backbone: nn.Module) -> Tensor | None:
    """A random image that a backbone takes; None when it takes none that is tried."""
    if not any(isinstance(module, nn.Conv2d) for module in backbone.modules()):
        return None
    size = getattr(backbone, 'img_size', None)  # some take no other
    sizes = [PROBE_SIZE, USUAL_SIZE] if size is None else [tuple(size) if isinstance(size, Sequence) else (size, size)]
    for height, width in sizes:
        probe = _noise(backbone, height, width)
        try:
            with torch.no_grad():
                backbone(probe)
        except Exception as error:  # whatever a backbone raises when it does not take this size
            logged = f'{type(backbone).__name__} does not take {height}x{width} pixels: {error}'
            print_log(logged, logger='current', level=logging.DEBUG)
        else:
            return probe
    return None


def _noise(backbone: nn.Module, height: int, width: int) -> Tensor:
    """A random image for a backbone, in its dtype, on its device; the same at every call."""
    conv = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, conv.in_channels, height, width, generator=generator).to(conv.weight)


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)
