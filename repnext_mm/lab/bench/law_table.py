"""Law or family x exact in float64 x speed-up, measured here and now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from repnext_mm.lab.bench.exactness import TOLERANCE_FLOAT64, check_consistency, with_random_statistics
from repnext_mm.lab.bench.law_cases import LAWS, Definition
from repnext_mm.lab.bench.law_speed import DEFINITION, FUSED, LIBRARY, TRAIN, contestants, measure_speed
from repnext_mm.lab.bench.named_models import build_named
from repnext_mm.timing import Latency


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
        """The definition: branch by branch, as the authors or the library run it."""
        return self.times.get(DEFINITION, self.times[TRAIN])

    @property
    def speed_up(self) -> float:
        """Of fusing, by medians."""
        return self.before.median_ms / self.times[FUSED].median_ms


def names(chosen: Sequence[str] = ()) -> list[str]:
    """The rows whose names contain one of the words, or all rows.

    Raises:
        ValueError: a word is in no row's name.
    """
    known = [*LAWS, *FAMILIES]
    for word in chosen:
        if not any(word in name for name in known):
            raise ValueError(f"no row of the table is named like '{word}': rows are {'; '.join(known)}")
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
            error_float64=_worst([level.relative for level in found.levels['float64']]),
            error_float32=_worst([level.relative for level in found.levels['float32']]),
            parameters=(report.parameters_before, report.parameters_after),
            norms=(report.norms_before, report.norms_after),
            times=times,
        )


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    cells = [
        [
            'law or family',
            'exact in float64',
            'norms',
            'parameters, k',
            'as defined, ms',
            'fused, ms',
            'speed-up',
            "library's own fused, ms",
        ],
        *map(_cells, rows),
    ]
    lines = [f'| {" | ".join(line)} |' for line in cells]
    return '\n'.join([lines[0], '|---|---|---:|---:|---:|---:|---:|---:|', *lines[1:]])


def _row(name: str, size: int) -> tuple[Callable[[], nn.Module], tuple[int, ...], str]:
    if name in LAWS:
        case = LAWS[name]
        return (lambda: Definition(case).eval()), case.shape, 'default'
    entry = FAMILIES[name]
    return (lambda: build_named(entry.model, options=entry.options)), (1, 3, size, size), entry.form


def _worst(errors: Sequence[float]) -> float:
    return torch.tensor(errors, dtype=torch.float64).max().item()  # unlike max(), NaN wins


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
