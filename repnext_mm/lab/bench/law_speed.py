"""How long a model takes before and after fusing, ours and its own library's, in turn."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from repnext_mm.models import RepNeXt
from repnext_mm.models.branchwise import branch_by_branch
from repnext_mm.reparam import Form, fuse, relative_error, within
from repnext_mm.timing import Latency, measure_latency

DEFINITION = 'branch by branch'
TRAIN = 'train form'
LIBRARY = "library's own"
FUSED = 'fused'
LIBRARY_TOLERANCE = 1e-3  # relative, of the library's own form in float32


def contestants(
    model: nn.Module, *, form: Form = 'default', shape: Sequence[int] = (1, 3, 224, 224)
) -> dict[str, nn.Module]:
    """A float32 model on the CPU in the forms that are timed; ``model`` is not changed.

    Returns:
        The definition where the train form merges on the fly, the train form as its library runs it, what the
        library's own converter makes, where it has one that does not change the outputs, and the fused form.

    Raises:
        ValueError: there is nothing to fuse.
    """
    image = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    fused, report = fuse(model, form=form, copy=True, probe=image)
    if not report:
        raise ValueError(
            f'{type(model).__name__} has nothing to fuse, so there is nothing to compare: not re-parameterizable, or '
            'fused already'
        )
    apart = branch_by_branch(model)
    found = {} if apart is model else {DEFINITION: copy.deepcopy(apart)}
    found[TRAIN] = copy.deepcopy(model)
    theirs = library_fused(model)
    if theirs is not None and within(relative_error(theirs, model, image), LIBRARY_TOLERANCE):
        found[LIBRARY] = theirs
    return {**found, FUSED: fused}


def library_fused(model: nn.Module) -> nn.Module | None:
    """What the model's own library makes of a copy of it; None where it has no converter.

    For RepNeXt, alone or in a classifier, that is the form that its authors call fused.
    """
    if any(isinstance(module, RepNeXt) for module in model.modules()):
        return fuse(model, form='keep_norms', copy=True)[0]
    if type(model).__module__.partition('.')[0] == 'repnext_mm':
        return None
    if type(model).__module__.startswith('timm.'):
        from timm.utils.model import reparameterize_model

        names = ('fuse', 'reparameterize', 'switch_to_deploy')  # what timm calls
        if any(hasattr(module, name) for module in model.modules() for name in names):
            return reparameterize_model(model)
        return None
    convert = getattr(model, 'switch_to_deploy', None) or getattr(
        getattr(model, 'backbone', None), 'switch_to_deploy', None
    )
    if convert is None:
        return None
    theirs = copy.deepcopy(model)
    converted = theirs if hasattr(theirs, 'switch_to_deploy') else theirs.backbone
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        converted.switch_to_deploy()  # type: ignore[operator, union-attr]
    return theirs


def measure_speed(
    models: dict[str, nn.Module],
    *,
    shape: Sequence[int] = (1, 3, 224, 224),
    device: torch.device | str = 'cpu',
    rounds: int = 30,
    warmup_s: float = 1.0,
    seed: int = 0,
) -> dict[str, Latency]:
    """Time forward passes of models in turn, in float32 and eval mode; the models are moved to ``device``.

    Raises:
        ValueError: nothing to time, or a count that cannot be.
    """
    image = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)
    for model in models.values():
        model.to(device, torch.float32).requires_grad_(False)
        model.eval()
    calls = {name: partial(model, image) for name, model in models.items()}
    return measure_latency(calls, rounds=rounds, warmup_s=warmup_s, device=device)
