"""Benchmark records as Markdown: inference by setting, training steps, whole models."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, NamedTuple

from repnext_mm.lab.bench.floor import floor_ms
from repnext_mm.lab.bench.jobs import failures_of
from repnext_mm.lab.bench.networks import CLASSIFIER, REFERENCE_FORM
from repnext_mm.lab.bench.published import REPORTED, SOURCES, Reported
from repnext_mm.lab.bench.record import Record
from repnext_mm.lab.bench.training import TrainingStep
from repnext_mm.lab.bench.whole_files import WholeFiles
from repnext_mm.lab.bench.whole_model import WholeModel
from repnext_mm.lab.bench.whole_step import WholeStep
from repnext_mm.lab.table import markdown_table
from repnext_mm.timing import Latency, quantiles


class Setting(NamedTuple):
    """What rows must share to be compared."""

    mode: str
    runtime: str
    shape: tuple[int, ...]
    dtype: str
    memory_format: str

    def __str__(self) -> str:
        return f'{self.mode}, {self.runtime}, {_shape(self.shape)}, {self.dtype}, {self.memory_format}'


@dataclass(frozen=True)
class Row:
    """One variant over all repeats; times in milliseconds per call."""

    model: str
    form: str
    time: Latency
    medians_ms: tuple[float, ...]  # of each process
    event_median_ms: float | None  # CUDA events
    ratio: float | None  # how often faster than the same arch with its norms kept, in the same process
    images_per_s: float
    error: float
    parameters: int
    norms: int
    peak_memory_mib: float | None
    floor_ms: float | None = None  # its 1x1 convolutions at the rate that was measured beside it
    chosen: Any = None  # what 'auto' came to, in the last process

    @property
    def reported(self) -> Reported:
        """What the authors report of this network."""
        found = REPORTED[self.model.removesuffix(CLASSIFIER)]
        return replace(found, label=f'{found.label} classifier') if self.model.endswith(CLASSIFIER) else found


def settings(record: Record) -> dict[Setting, list[Row]]:
    """The measured rows of each setting, in the order of measuring."""
    return {setting: rows for setting, runs in _runs(record).items() if (rows := list(_rows(runs)))}


def inference_tables(record: Record) -> str:
    """Environment, protocol, one table per setting, what failed and what was left out."""
    lines = heading(record, record['settings'].get('title', 'Benchmark')) + _protocol(record)
    cuda = record['settings'].get('device') == 'cuda'
    runs = _runs(record)
    for setting, rows in settings(record).items():
        lines += ['', f'## {setting}', '', _inference_table(setting, rows, cuda)]
        for row in rows:
            if row.chosen:
                chosen = ', '.join(f'{part or "all"} {form}' for part, form in row.chosen.items())
                lines += ['', f'{row.reported.label} {row.form}: {chosen}.']
        peaks = [peak for run in runs[setting] if (peak := run.get('process_peak_rss_mib'))]
        if peaks and not cuda:
            lines += ['', f'Peak resident memory of the whole process, all variants together: {max(peaks):,.0f} MiB.']
    failures = Counter(line for run in record['runs'] for line in failures_of(run, repeat=False))  # mostly all alike
    repeats = record['settings']['repeats']
    lines += _listed('Failed', [f'{line} ({count} of {repeats} repeats)' for line, count in failures.items()])
    lines += _listed('Left out', record['skipped'])
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


def add_results(record: Record, results: Sequence[TrainingStep | WholeStep | WholeModel | WholeFiles]) -> None:
    """Append training steps, of a backbone or of a config, or whole models to a record, as plain values."""
    record.setdefault('results', []).extend(json.loads(json.dumps(asdict(result))) for result in results)


def training_table(results: Sequence[TrainingStep]) -> str:
    """A row for each way to train; ratios are to the same network run by its branches."""
    head = ['arch', 'shape', 'autocast', 'format', 'way', 'median ms', 'p10 to p90', 'n']
    head += ['x branches', 'memory, MiB', 'x branches', 'gradient error']
    rows = []
    for result in results:
        for name, step in result.steps.items():
            branches = result.branches_of(name)
            rows.append(
                [
                    *(result.arch.upper(), _shape(result.shape), result.dtype, result.memory_format),
                    name + {'eager': '', 'compile': ', compiled', 'cudagraph': ', as a CUDA graph'}[result.runtime],
                    *(f'{step.time.median_ms:.1f}', _deciles(step.time, '.1f'), str(step.time.n)),
                    f'{branches.time.median_ms / step.time.median_ms:.2f}',
                    *(f'{step.memory_mib:,.0f}', f'{branches.memory_mib / step.memory_mib:.2f}'),
                    f'{step.gradient_error:.0e}',
                ]
            )
    memory = '; '.join(dict.fromkeys(result.memory_kind for result in results))
    note = f'Memory: {memory}. Both ways have the same loss and gradients up to the error.'
    return f'{markdown_table(head, rows, texts=5)}\n\n{note}'


def whole_step_tables(results: Sequence[WholeStep]) -> str:
    """A table for each measurement, a row for each way to train, a column for each stage; ratios are to the first."""
    texts = []
    for result in results:
        first = result.ways[0].stages['total'].median_ms
        stages = [stage for stage in result.ways[0].stages if stage != 'total']
        rows = []
        for way in result.ways:
            total = way.stages['total']
            rows.append(
                [
                    *(way.backbone, way.runtime, way.memory_format, way.dtype, f'{way.parameters / 1e6:.2f}'),
                    *(f'{way.stages[stage].median_ms:.0f}' for stage in stages),
                    *(f'{total.median_ms:.0f}', _deciles(total, '.0f'), f'{first / total.median_ms:.2f}'),
                    *(f'{way.memory_mib:,.0f}', f'{way.first_step_s:.1f}'),
                ]
            )
        head = ['backbone', 'runtime', 'format', 'autocast', 'its parameters, M', *(f'{stage}, ms' for stage in stages)]
        head += ['step, ms', 'p10 to p90', 'x first row', 'memory, MiB', 'first step, s']
        weights = 'trained' if result.trained else 'initial'
        texts.append(
            f'{result.config}, batch {_shape(result.batch_shape)}, {result.device}, {result.threads} threads, '
            f'{weights} weights, {result.clock}, medians of {result.ways[0].stages["total"].n}.\n\n'
            f'{markdown_table(head, rows, texts=4)}\n\n{_data_line(result)} Memory: {result.memory_kind}.\n'
        )
    return '\n'.join(texts)


def _data_line(result: WholeStep) -> str:
    made, workers = result.data.median_ms, result.workers
    if not workers:
        return f'Data: {made:.0f} ms a batch, made between the steps in this config (no workers): add it to each step.'
    fastest = min(way.stages['total'].median_ms for way in result.ways)
    verdict = 'limits the fastest of these' if made / workers > fastest else 'is hidden behind the step'
    return f'Data: {made:.0f} ms a batch in one process, {workers} workers in this config: it {verdict}.'


def whole_model_tables(results: Sequence[WholeModel]) -> str:
    """A table for each model, a row for each part; the fused model against the trained one in the same run.

    Of several configs, the fused ones come first, a row for each.
    """
    head = ['part', 'train form, median ms', 'p10 to p90', 'fused, median ms', 'p10 to p90', 'n', 'times faster']
    texts = [_fused_models(results)] if len({result.config for result in results}) > 1 else []
    for result in results:
        weights = 'trained weights' if result.trained else 'random weights'
        counts = ''.join(f', {count} {kind}' for kind, count in result.counts.items())
        rows = []
        for part, train in result.times['train'].items():
            fused = result.times['fused'][part]
            ratio = train.median_ms / fused.median_ms if fused.median_ms else 1.0
            times = [cell for time in (train, fused) for cell in (f'{time.median_ms:.1f}', _deciles(time, '.1f'))]
            rows.append([part.replace('_', ' '), *times, str(fused.n), f'{ratio:.2f}'])
        texts.append(
            f'{result.config}, {weights}, image of {_shape(result.image_shape)} ({result.image}), network input '
            f'{_shape(result.input_shape)}{counts}; {result.fusion}; relative error {result.error:.0e}.\n\n'
            f'{markdown_table(head, rows)}\n'
        )
    return '\n'.join(texts)


def _fused_models(results: Sequence[WholeModel]) -> str:
    """Random weights find what they find, and post-processing takes its time: the networks compare without it."""
    head = ['config, fused', 'network input', 'backbone, ms', 'neck and head, ms', 'network, ms', 'total, ms', 'n']
    rows = []
    for result in results:
        ms = {part: time.median_ms for part, time in result.times['fused'].items()}
        rest = ms['neck'] + ms['head']
        times = [f'{value:.0f}' for value in (ms['backbone'], rest, ms['backbone'] + rest, ms['total'])]
        rows.append([result.config, _shape(result.input_shape), *times, str(result.times['fused']['total'].n)])
    return f'{markdown_table(head, rows, texts=2)}\n'


def whole_file_tables(results: Sequence[WholeFiles]) -> str:
    """A table for each measurement, a row for each way to run the model; ratios are to the first, PyTorch."""
    texts = []
    for result in results:
        first = result.ways[0].time.median_ms
        rows = [
            [
                way.name,
                _maybe(way.size_bytes, lambda size: f'{size / 1e6:.1f}'),
                *(_maybe(way.found, str), f'{way.agreement:.3f}'),
                *(f'{way.time.median_ms:.1f}', _deciles(way.time, '.1f'), str(way.time.n)),
                f'{first / way.time.median_ms:.2f}',
            ]
            for way in result.ways
        ]
        head = ['way', 'MB', 'objects', 'agreement', 'median ms', 'p10 to p90', 'n', 'x PyTorch']
        weights = 'trained weights' if result.trained else 'random weights'
        texts.append(
            f'{result.config}, {weights}, image of {_shape(result.image_shape)} ({result.image}), {result.threads} '
            'threads; from the decoded image to boxes and masks, classes of pixels, or scores.\n\n'
            f'{markdown_table(head, rows)}\n'
        )
    return '\n'.join(texts)


def _runs(record: Record) -> dict[Setting, list[dict[str, Any]]]:
    found: dict[Setting, list[dict[str, Any]]] = {}
    for run in record['runs']:
        job = run['job']
        shape = (run['batch'], *job['shape'][1:])
        setting = Setting(job['mode'], job['runtime'], shape, job['dtype'], job['memory_format'])
        found.setdefault(setting, []).append(run)
    return found


def _rows(runs: Sequence[dict[str, Any]]) -> Iterator[Row]:
    variants: dict[tuple[str, str], list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for run in runs:
        for row in run['variants']:
            if 'times_ms' in row:
                variants.setdefault((row['model'], row['form']), []).append((run, row))
    for (model, form), found in variants.items():
        events = [time for _, row in found for time in row.get('event_times_ms', ())]
        ratios = [ratio for run, row in found if (ratio := _ratio(run, row)) is not None]
        floors = [ms for run, row in found if (ms := floor_ms(row.get('pointwise_macs'), run.get('stacks', ())))]
        total = quantiles([time for _, row in found for time in row['times_ms']])
        run, last = found[-1]
        yield Row(
            model,
            form,
            time=total,
            medians_ms=tuple(median(row['times_ms']) for _, row in found),
            event_median_ms=median(events) if events else None,
            ratio=median(ratios) if ratios else None,
            images_per_s=run['batch'] / total.median_ms * 1e3,
            error=max(row['error'] for _, row in found),
            parameters=last['parameters'],
            norms=last['norms'],
            peak_memory_mib=last.get('peak_memory_mib'),
            floor_ms=median(floors) if floors else None,
            chosen=last.get('chosen'),
        )


def _ratio(run: dict[str, Any], row: dict[str, Any]) -> float | None:
    for other in run['variants']:
        if (other['model'], other['form']) == (row['model'], REFERENCE_FORM) and 'times_ms' in other:
            return median(other['times_ms']) / median(row['times_ms'])
    return None


def _inference_table(setting: Setting, rows: Sequence[Row], cuda: bool) -> str:
    columns: dict[str, Callable[[Row], str]] = {
        'network': lambda row: row.reported.label,
        'form': lambda row: row.form,
        'median ms': lambda row: _ms(row.time.median_ms),
        'p10 to p90': lambda row: f'{_ms(row.time.p10_ms)} to {_ms(row.time.p90_ms)}',
        'n': lambda row: str(row.time.n),
        'medians of the processes': lambda row: (
            f'{_ms(min(row.medians_ms))} to {_ms(max(row.medians_ms))}' if len(row.medians_ms) > 1 else '(one)'
        ),
    }
    if cuda:
        columns['events, median ms'] = lambda row: _maybe(row.event_median_ms, _ms)
        columns['peak MiB'] = lambda row: _maybe(row.peak_memory_mib, '{:,.0f}'.format)
    if setting.mode == 'throughput':
        columns['images/s'] = lambda row: f'{row.images_per_s:,.4g}'
    if any(row.floor_ms for row in rows):
        columns['floor, ms'] = lambda row: _maybe(row.floor_ms, _ms)
        columns['x floor'] = lambda row: _maybe(row.floor_ms, lambda ms: f'{row.time.median_ms / ms:.2f}')
    columns |= {
        f'x {REFERENCE_FORM}': lambda row: _maybe(row.ratio, '{:.2f}'.format),
        'error': lambda row: f'{row.error:.0e}',
        'parameters, M': lambda row: f'{row.parameters / 1e6:.2f}',
        'norms': lambda row: str(row.norms),
        'top-1': lambda row: _maybe(row.reported.top1, str),
    }
    return markdown_table(list(columns), [[cell(row) for cell in columns.values()] for row in rows], texts=2)


def _protocol(record: Record) -> list[str]:
    given = record['settings']
    floor = (
        ' "floor": the 1x1 convolutions alone, at the rate of plain stacks of them that took turns with the networks.'
        if any(run.get('stacks') for run in record['runs'])
        else ''
    )
    return [
        f'One process for each table and repeat ({given["repeats"]} repeats); in it all variants in turn, '
        f'{given["rounds"]} rounds after a warm-up of at least {given["warmup_s"]} s and {given["warmup_rounds"]} '
        'rounds. Times are by the wall clock, each call waited for. Each variant was first compared with the float32 '
        'train form on the same image ("error": largest difference over largest value), with random weights and norm '
        f'statistics. "x {REFERENCE_FORM}": how many times faster than the same arch fused with its norms kept, as '
        'the authors do it, in the same process. A classifier goes from the image to 1000 scores; of backbones, '
        f'RepNeXt returns four levels, peers the last one (no head, no pooling).{floor} "top-1": ImageNet-1K, as '
        'reported, not measured here.'
    ]


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    return ['', f'## {title}', '', *(f'- {line}' for line in lines)] if lines else []


def _sources(record: Record) -> list[str]:
    models = {row['model'].removesuffix(CLASSIFIER) for run in record['runs'] for row in run['variants']}
    known = [reported for model, reported in REPORTED.items() if model in models]
    recipes = dict.fromkeys((reported.source, reported.recipe, reported.family) for reported in known)
    return [
        f'Reported top-1 of {family} ({recipe}): {SOURCES[source]}.'
        for source, recipe, family in recipes
        if source is not None
    ]


def _shape(shape: Sequence[int]) -> str:
    return 'x'.join(map(str, shape))


def _deciles(time: Latency, digits: str) -> str:
    return f'{time.p10_ms:{digits}} to {time.p90_ms:{digits}}'


def _ms(value: float) -> str:
    return f'{value:.3f}' if value < 1 else f'{value:.2f}' if value < 10 else f'{value:.1f}'


def _maybe(value: Any, write: Callable[[Any], str]) -> str:
    return '' if value is None else write(value)


def _plain(value: object) -> str:
    return ', '.join(f'{key} {inner}' for key, inner in value.items()) if isinstance(value, dict) else str(value)
