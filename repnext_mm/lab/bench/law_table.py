"""Laws and families as a table: exact in float64, and faster by how much; before and after, interleaved."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from repnext_mm.errors import UserError
from repnext_mm.lab.bench.exactness import TOLERANCE_FLOAT64, check_consistency, with_random_statistics
from repnext_mm.lab.bench.law_cases import LAWS, Definition
from repnext_mm.lab.bench.named_models import build_named
from repnext_mm.lab.table import markdown_table
from repnext_mm.models import RepNeXt
from repnext_mm.models.branchwise import branch_by_branch
from repnext_mm.reparam import fuse, relative_error
from repnext_mm.reparam.fusible import Form
from repnext_mm.reparam.verify import all_within, worst
from repnext_mm.timing import Latency, measure_latency

BRANCHES, TRAIN, LIBRARY, FUSED = 'branches', 'train form', "library's own", 'fused'
LIBRARY_TOLERANCE = 1e-3  # relative, of the library's own form in float32


class Entry(NamedTuple):
    """A family's network: its name for ``build_named``, constructor's options, and the form it is fused to."""

    model: str
    options: Mapping[str, Any] = {}
    form: str = 'default'


FAMILIES: dict[str, Entry] = {
    **{f'RepNeXt-M{size}': Entry(f'm{size}') for size in range(6)},
    **{
        f'RepNeXt-{unit}-tiny, {kept} shortcuts': Entry('RepNeXtU', {'arch': 'tiny', 'unit': unit}, form)
        for unit in ('u1', 'u2', 'u3')
        for kept, form in (('with', 'default'), ('without', 'no_shortcut'))
    },
    'RepVGG-A0 (MMPretrain)': Entry('mmpretrain.RepVGG', {'arch': 'A0'}),
    'MobileOne-S0 (timm)': Entry('timm/mobileone_s0'),
    'RepViT-M0.9 (timm)': Entry('timm/repvit_m0_9'),
    'FastViT-T8 (timm)': Entry('timm/fastvit_t8'),
    'ResNet-18 (MMPretrain)': Entry('mmpretrain.ResNet', {'depth': 18}),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    name: str
    shape: tuple[int, ...]
    error_float64: float  # relative, of the worst output level, against the definition
    error_float32: float
    parameters: tuple[int, int]  # before and after
    norms: tuple[int, int]
    times: Mapping[str, Latency]

    @property
    def exact(self) -> bool:
        """Whether the float64 error is rounding; NaN is not."""
        return self.error_float64 <= TOLERANCE_FLOAT64

    @property
    def before(self) -> Latency:
        """The definition: run by its branches, as the authors or the library run it."""
        return self.times.get(BRANCHES, self.times[TRAIN])

    @property
    def speed_up(self) -> float:
        """Of fusing, by medians."""
        return self.before.median_ms / self.times[FUSED].median_ms


def names(chosen: Sequence[str] = ()) -> list[str]:
    """The rows whose names contain one of the words, or all rows.

    Raises:
        UserError: a word is in no row's name.
    """
    known = [*LAWS, *FAMILIES]
    for word in chosen:
        if not any(word in name for name in known):
            raise UserError(f"no row of the table is named like '{word}': rows are {'; '.join(known)}")
    return [name for name in known if not chosen or any(word in name for word in chosen)]


def measure_rows(
    chosen: Sequence[str],
    *,
    size: int = 224,
    device: torch.device | str = 'cpu',
    rounds: int = 30,
    warmup_s: float = 1.0,
    seed: int = 0,
) -> Iterator[Row]:
    """Check and time rows of the table, one after the other; within a row, forms are timed in turn.

    Args:
        chosen: of ``names()``.
        size: pixels, of the families' images; laws run at their own size.
        device: where to run.
        rounds: timed calls of each form.
        warmup_s: least seconds of warm-up per row.
        seed: of weights and images.
    """
    for name in chosen:
        torch.manual_seed(seed)
        build, shape, form = _row(name, size)
        model = with_random_statistics(build(), shape=shape, seed=seed)
        found = check_consistency(model, form=form, shape=shape, device=device, seed=seed)
        models = contestants(model, form=form, shape=shape)
        times = measure_speed(models, shape=shape, device=device, rounds=rounds, warmup_s=warmup_s, seed=seed)
        report = found.report
        yield Row(
            name=name,
            shape=shape,
            error_float64=worst([level.relative for level in found.levels['float64']]),
            error_float32=worst([level.relative for level in found.levels['float32']]),
            parameters=(report.parameters_before, report.parameters_after),
            norms=(report.norms_before, report.norms_after),
            times=times,
        )


def law_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    head = ['law or family', 'exact in float64', 'norms', 'parameters, k', 'as defined, ms', 'fused, ms', 'speed-up']
    return markdown_table([*head, "library's own fused, ms"], map(_cells, rows), texts=2)


def contestants(
    model: nn.Module, *, form: Form = 'default', shape: Sequence[int] = (1, 3, 224, 224)
) -> dict[str, nn.Module]:
    """A float32 model on the CPU in the forms that are timed; ``model`` is not changed.

    Returns:
        The definition where the train form merges on the fly, the train form as its library runs it, what the
        library's own converter makes, where it has one that does not change the outputs, and the fused form.

    Raises:
        UserError: there is nothing to fuse.
    """
    image = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    fused, report = fuse(model, form=form, copy=True, probe=image)
    if not report:
        raise UserError(
            f'{type(model).__name__} has nothing to fuse, so there is nothing to compare: not re-parameterizable, or '
            'fused already'
        )
    apart = branch_by_branch(model)
    found = {} if apart is model else {BRANCHES: copy.deepcopy(apart)}
    found[TRAIN] = copy.deepcopy(model)
    theirs = library_fused(model)
    if theirs is not None and all_within(relative_error(theirs, model, image), LIBRARY_TOLERANCE):
        found[LIBRARY] = theirs
    return {**found, FUSED: fused}


def library_fused(model: nn.Module) -> nn.Module | None:
    """A copy of the model, fused by its own library; None where that has no converter.

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
        UserError: nothing to time, or a count that is not possible.
    """
    image = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)
    for model in models.values():
        model.to(device, torch.float32).requires_grad_(False)
        model.eval()
    calls = {name: partial(model, image) for name, model in models.items()}
    return measure_latency(calls, rounds=rounds, warmup_s=warmup_s, device=device)


def _row(name: str, size: int) -> tuple[Callable[[], nn.Module], tuple[int, ...], str]:
    if name in LAWS:
        case = LAWS[name]
        return (lambda: Definition(case).eval()), case.shape, 'default'
    entry = FAMILIES[name]
    return (lambda: build_named(entry.model, options=entry.options)), (1, 3, size, size), entry.form


def _cells(row: Row) -> list[str]:
    library = row.times.get(LIBRARY)
    before, after = row.parameters
    return [
        row.name,
        f'{"yes" if row.exact else "**no**"}, {row.error_float64:.0e}',
        f'{row.norms[0]} to {row.norms[1]}',
        f'{before / 1e3:,.0f} to {after / 1e3:,.0f}',
        _time(row.before),
        _time(row.times[FUSED]),
        f'{row.speed_up:.2f}',
        '' if library is None else _time(library),
    ]


def _time(latency: Latency) -> str:
    return f'{latency.median_ms:.3g} ({latency.p10_ms:.3g} to {latency.p90_ms:.3g})'
