"""A benchmark record as rows and as a Markdown table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from repnext_mm.lab.bench.networks import CLASSIFIER, REFERENCE_FORM
from repnext_mm.lab.bench.published import REPORTED, SOURCES, Reported
from repnext_mm.lab.bench.record import Record
from repnext_mm.timing import quantiles


@dataclass(frozen=True)
class Setting:
    """What rows must share to be compared."""

    mode: str
    runtime: str
    shape: tuple[int, ...]
    dtype: str
    memory_format: str

    def __str__(self) -> str:
        shape = 'x'.join(map(str, self.shape))
        return f'{self.mode}, {self.runtime}, {shape}, {self.dtype}, {self.memory_format}'


@dataclass(frozen=True)
class Row:
    """One variant over all repeats; times in milliseconds per call."""

    model: str
    form: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    n: int
    medians_ms: tuple[float, ...]  # of each process
    event_median_ms: float | None  # CUDA events
    ratio: float | None  # how often faster than the same arch with its norms kept, in the same process
    images_per_s: float
    error: float
    parameters: int
    norms: int
    peak_memory_mib: float | None
    chosen: Any = None  # what 'auto' came to, in the last process

    @property
    def reported(self) -> Reported:
        """What the authors report of this network."""
        found = REPORTED[self.model.removesuffix(CLASSIFIER)]
        return replace(found, label=f'{found.label} classifier') if self.model.endswith(CLASSIFIER) else found


def settings(record: Record) -> dict[Setting, list[Row]]:
    """The measured rows of each setting, in the order of measuring."""
    runs: dict[Setting, list[dict[str, Any]]] = {}
    for run in record['runs']:
        job = run['job']
        key = Setting(
            job['mode'], job['runtime'], (run['batch'], *job['shape'][1:]), job['dtype'], job['memory_format']
        )
        runs.setdefault(key, []).append(run)
    return {key: rows for key, group in runs.items() if (rows := list(_rows(group)))}


def markdown(record: Record) -> str:
    """Environment, protocol, one table per setting, what failed and what was left out."""
    lines = heading(record, record['settings'].get('title', 'Benchmark')) + _protocol(record)
    cuda = record['settings'].get('device') == 'cuda'
    for setting, rows in settings(record).items():
        lines += ['', f'## {setting}', '', *_table(setting, rows, cuda)]
        for row in rows:
            if row.chosen:
                chosen = ', '.join(f'{part or "all"} {form}' for part, form in row.chosen.items())
                lines += ['', f'{row.reported.label} {row.form}: {chosen}.']
        peaks = [
            run['process_peak_rss_mib']
            for run in record['runs']
            if _same(run, setting) and run.get('process_peak_rss_mib')
        ]
        if peaks and not cuda:
            lines += ['', f'Peak resident memory of the whole process, all variants together: {max(peaks):,.0f} MiB.']
    lines += _failures(record)
    if record['skipped']:
        lines += ['', '## Left out', '', *(f'- {line}' for line in record['skipped'])]
    return '\n'.join([*lines, '', *_sources(record)]) + '\n'


def heading(record: Record, title: str) -> list[str]:
    """Title, command and environment."""
    known = {key: value for key, value in record['environment'].items() if value is not None}
    return [
        f'# {title}',
        '',
        f'Command: `{record["command"]}`',
        '',
        *(f'- {key}: {_plain(value)}' for key, value in known.items()),
        '',
    ]


def _rows(runs: Sequence[dict[str, Any]]) -> Iterator[Row]:
    names = dict.fromkeys((row['model'], row['form']) for run in runs for row in run['variants'])
    for model, form in names:
        found = [
            (run, row)
            for run in runs
            for row in run['variants']
            if (row['model'], row['form']) == (model, form) and 'times_ms' in row
        ]
        if not found:
            continue
        total = quantiles([time for _, row in found for time in row['times_ms']])
        events = [time for _, row in found for time in row.get('event_times_ms', ())]
        ratios = [ratio for run, row in found if (ratio := _ratio(run, row)) is not None]
        last = found[-1][1]
        yield Row(
            model,
            form,
            total.median_ms,
            total.p10_ms,
            total.p90_ms,
            total.n,
            tuple(median(row['times_ms']) for _, row in found),
            median(events) if events else None,
            median(ratios) if ratios else None,
            found[-1][0]['batch'] / total.median_ms * 1e3,
            max(row['error'] for _, row in found),
            last['parameters'],
            last['norms'],
            last.get('peak_memory_mib'),
            last.get('chosen'),
        )


def _ratio(run: dict[str, Any], row: dict[str, Any]) -> float | None:
    for other in run['variants']:
        if (other['model'], other['form']) == (row['model'], REFERENCE_FORM) and 'times_ms' in other:
            return median(other['times_ms']) / median(row['times_ms'])
    return None


def _table(setting: Setting, rows: Sequence[Row], cuda: bool) -> list[str]:
    columns = ['network', 'form', 'median ms', 'p10 to p90', 'n', 'medians of the processes']
    if cuda:
        columns += ['events, median ms', 'peak MiB']
    if setting.mode == 'throughput':
        columns += ['images/s']
    columns += [f'x {REFERENCE_FORM}', 'error', 'parameters, M', 'norms', 'top-1']
    lines = [f'| {" | ".join(columns)} |', '|---|---|' + '---:|' * (len(columns) - 2)]
    for row in rows:
        low, high = min(row.medians_ms), max(row.medians_ms)
        cells = [
            row.reported.label,
            row.form,
            _ms(row.median_ms),
            f'{_ms(row.p10_ms)} to {_ms(row.p90_ms)}',
            str(row.n),
            f'{_ms(low)} to {_ms(high)}' if len(row.medians_ms) > 1 else '(one)',
        ]
        if cuda:
            cells += [_maybe(row.event_median_ms, _ms), _maybe(row.peak_memory_mib, '{:,.0f}'.format)]
        if setting.mode == 'throughput':
            cells += [f'{row.images_per_s:,.4g}']
        cells += [
            _maybe(row.ratio, '{:.2f}'.format),
            f'{row.error:.0e}',
            f'{row.parameters / 1e6:.2f}',
            str(row.norms),
            _maybe(row.reported.top1, str),
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return lines


def _protocol(record: Record) -> list[str]:
    given = record['settings']
    return [
        f'One process for each table and repeat ({given["repeats"]} repeats); in it all variants in turn, '
        f'{given["rounds"]} rounds after a warm-up of at least {given["warmup_s"]} s and {given["warmup_rounds"]} '
        'rounds. Times are by the wall clock, each call waited for. Each variant was first compared with the float32 '
        'train form on the same image ("error": largest difference over largest value), with random weights and norm '
        f'statistics. "x {REFERENCE_FORM}": how many times faster than the same arch fused with its norms kept, as '
        'the authors do it, in the same process. A classifier goes from the image to 1000 scores; of backbones, '
        'RepNeXt returns four levels, peers the last one (no head, no pooling). "top-1": ImageNet-1K, as reported, not '
        'measured here.'
    ]


def _failures(record: Record) -> list[str]:
    from repnext_mm.lab.bench.run import failures_of

    lines: dict[str, int] = {}  # repeats mostly fail alike
    for run in record['runs']:
        for line in failures_of(run, repeat=False):
            lines[line] = lines.get(line, 0) + 1
    repeats = record['settings']['repeats']
    listed = [f'- {line} ({count} of {repeats} repeats)' for line, count in lines.items()]
    return ['', '## Failed', '', *listed] if listed else []


def _sources(record: Record) -> list[str]:
    models = {row['model'].removesuffix(CLASSIFIER) for run in record['runs'] for row in run['variants']}
    known = [REPORTED[model] for model in REPORTED if model in models and REPORTED[model].source]
    recipes = dict.fromkeys((reported.source, reported.recipe, reported.family) for reported in known)
    return [
        f'Reported top-1 of {family} ({recipe}): {SOURCES[source]}.'
        for source, recipe, family in recipes
        if source is not None
    ]


def _same(run: dict[str, Any], setting: Setting) -> bool:
    job = run['job']
    found = (job['mode'], job['runtime'], (run['batch'], *job['shape'][1:]), job['dtype'], job['memory_format'])
    return Setting(*found) == setting


def _ms(value: float) -> str:
    return f'{value:.3f}' if value < 1 else f'{value:.2f}' if value < 10 else f'{value:.1f}'


def _maybe(value: Any, write: Any) -> str:
    return '' if value is None else str(write(value))


def _plain(value: object) -> str:
    return ', '.join(f'{key} {inner}' for key, inner in value.items()) if isinstance(value, dict) else str(value)
