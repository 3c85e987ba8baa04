"""Fusing that is verified: a model, or every backbone in it, is compared with its source before anyone runs it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from repnext_mm.errors import UserError
from repnext_mm.reparam.fuse import FusionReport, count_norms, count_parameters, fuse, sharded
from repnext_mm.reparam.fusible import Form, check_form
from repnext_mm.reparam.surgery import anchored, replaced, skeleton
from repnext_mm.reparam.unchanged import generators_kept, state_kept
from repnext_mm.reparam.verify import all_within, relative_error

PROBE_SIZE = (65, 97)  # odd, and not square: borders and axes count
USUAL_SIZE = (224, 224)  # for backbones that take one size
HALF_PRECISION_ROUNDINGS = 16  # a fused half-precision weight is rounded once more than its branches

Choice = Form | Callable[[nn.Module], Form]
"""A form, or a function that chooses one for a module in eval mode."""

_log = logging.getLogger(__name__)


class FusionError(RuntimeError, UserError):
    """A fused network is not within the tolerance of its source: usually NaN or extreme statistics in its weights."""


def fuse_checked(
    model: nn.Module,
    *,
    form: Choice = 'default',
    tolerance: float = 1e-4,
    probe: Tensor | None = None,
) -> tuple[nn.Module, FusionReport]:
    """Fuse a model in eval mode and compare it with its source; any mode is taken, and no random number is used up.

    In a model with a ``backbone``, wherever wrappers, a student and a teacher have put it, each outermost module of
    such a name is fused and verified by itself, and the rest is shared with ``model``; any other model is fused and
    verified as a whole. Data-parallel wrappers are left out.

    Args:
        model: any module; unchanged afterwards, its train and eval flags too.
        form: see ``fuse``; or a function that gets a module that is to be fused, in eval mode, and chooses one.
        tolerance: the largest accepted relative error per output level. For half precision it is at least 16
            roundings. NaN never passes.
        probe: an input of what is fused, on its device; by default a random image of 65x97 or 224x224 pixels.

    Returns:
        The model with its fused parts in eval mode, and a report with their ``errors``. The report is falsy where
        nothing was fused: ``refused`` says why, and the model is returned as it came.

    Raises:
        FusionError: a fused module is not within the tolerance of its source.
        ValueError: ``form`` is unknown, or ``tolerance`` is not a positive number.
    """
    check_tolerance(tolerance)
    if not callable(form):
        check_form(form)
    if sharded(model):
        return _as_it_came(model, form, f'{type(model).__name__} is sharded (FSDP): its weights are in pieces')
    bare = _without_data_parallel(model)
    flags = {module: module.training for module in bare.modules()}
    new: dict[nn.Module, nn.Module] = {}
    reports: dict[str, FusionReport] = {}
    try:
        for name, part in (backbones_of(bare) or {'': bare}).items():
            part.eval()  # of some backbones, it returns None
            fused, reports[name] = _fused(part, form, tolerance, probe)
            if reports[name]:
                new[part] = _apart(fused, {module for module, training in flags.items() if training})
    finally:
        for module, training in flags.items():
            module.training = training
    if not new:
        return model, _joined(reports)
    result = replaced(bare, lambda _, module: new.get(module))
    if any(module in new for module in result.modules()):
        kept, reason = next(iter(anchored(bare).items()))
        return _as_it_came(model, form, f'a copy of {type(kept).__name__} would not take its place: {reason}')
    return result, _joined(reports)


def backbones_of(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost modules that are called a backbone, by name, wherever wrappers have put them."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if name.endswith('backbone') and not any(name.startswith(f'{outer}.') for outer in found):
            found[name] = module
    return found


def random_image(module: nn.Module, size: tuple[int, int]) -> Tensor:
    """A random image ``(1, C, H, W)`` for a module with 2D convolutions, of its dtype and device; always the same."""
    conv = next(part for part in module.modules() if isinstance(part, nn.Conv2d))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, conv.in_channels, *size, generator=generator).to(conv.weight)


def check_tolerance(tolerance: float) -> None:
    """Raise a ``ValueError`` unless a tolerance is a positive number."""
    is_number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
    if not is_number or not 0 < tolerance < math.inf:
        raise UserError(f'tolerance {tolerance!r} must be a positive number')


def _fused(module: nn.Module, form: Choice, tolerance: float, probe: Tensor | None) -> tuple[nn.Module, FusionReport]:
    name = type(module).__name__
    with generators_kept(), state_kept(module):
        probe = _probe(module) if probe is None else probe
        if probe is None:
            return _as_it_came(module, form, f'{name} takes no image to verify it with')
        fused, report = fuse(module, form=form(module) if callable(form) else form, probe=probe)
        if report.refused:
            count, first = len(report.refused), '; '.join(report.refused[:3])
            _log.warning('fusing %s leaves %d modules as they are: %s', name, count, first)
        if not report:
            _log.warning('%s has nothing to fuse: not re-parameterizable, or fused already', name)
            return module, report
        errors = relative_error(fused, module, probe)
    if probe.dtype in (torch.float16, torch.bfloat16):
        tolerance = max(tolerance, HALF_PRECISION_ROUNDINGS * torch.finfo(probe.dtype).eps)
    if not all_within(errors, tolerance):
        raise FusionError(
            f'the fused {name} differs from the trained one by {", ".join(f"{error:.1e}" for error in errors)} '
            f'(relative, per level), more than {tolerance:.1e}: look for NaN or extreme norm statistics in the weights '
            '(a few steps of training leave such), or use it unfused'
        )
    _log.info('%s: %s; relative error %.1e over %d levels', name, report, max(errors), len(errors))
    return fused, replace(report, errors=errors)


def _apart(fused: nn.Module, training: set[nn.Module]) -> nn.Module:
    """A module in eval mode that shares no module with those that go back to training mode, only their tensors."""
    stay = anchored(fused)  # these cannot be copied
    return replaced(fused, lambda _, module: skeleton(module)[0] if module in training else None, left=stay)


def _probe(module: nn.Module) -> Tensor | None:
    """A random image that a module takes; None when it takes none that is tried."""
    if not any(isinstance(part, nn.Conv2d) for part in module.modules()):
        return None
    size = getattr(module, 'img_size', None)  # some take no other
    sizes = [PROBE_SIZE, USUAL_SIZE] if size is None else [tuple(size) if isinstance(size, Sequence) else (size, size)]
    for height, width in sizes:
        probe = random_image(module, (height, width))
        try:
            with torch.no_grad():
                module(probe)
        except Exception as error:  # whatever a network raises when it does not take this size
            _log.debug('%s does not take %dx%d pixels: %s', type(module).__name__, height, width, error)
        else:
            return probe
    return None


def _without_data_parallel(model: nn.Module) -> nn.Module:
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = cast(nn.Module, model.module)
    return model


def _as_it_came(model: nn.Module, form: Choice, reason: str) -> tuple[nn.Module, FusionReport]:
    _log.warning('%s, nothing is fused', reason)
    parameters, norms = count_parameters(model), count_norms(model)
    report = FusionReport('default' if callable(form) else form, (), parameters, parameters, norms, norms, (reason,))
    return model, report


def _joined(reports: Mapping[str, FusionReport]) -> FusionReport:
    """One report about all backbones; names are those in a backbone where there is one, and else in the model."""
    if len(reports) == 1:
        return next(iter(reports.values()))
    parts = reports.items()
    first, *others = (report.form for report in reports.values())
    forms = {
        '.'.join(filter(None, (name, inner))): chosen
        for name, report in parts
        for inner, chosen in ({'': report.form} if isinstance(report.form, str) else report.form).items()
    }
    return FusionReport(
        first if all(form == first for form in others) else forms,
        tuple(f'{name}.{module}' for name, report in parts for module in report.modules),
        sum(report.parameters_before for _, report in parts),
        sum(report.parameters_after for _, report in parts),
        sum(report.norms_before for _, report in parts),
        sum(report.norms_after for _, report in parts),
        tuple(f'{name}: {reason}' for name, report in parts for reason in report.refused),
        tuple(error for _, report in parts for error in report.errors),
    )
