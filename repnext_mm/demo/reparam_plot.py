"""Accuracy and time of every form of every network, as bars."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from repnext_mm.demo.reparam import FormRow, ReparamReport

COLOURS = {'branch by branch': '#b0b0b0', 'train form': '#e08a3c', 'fused': '#0000a7'}
_WIDTH = 0.8  # of a model's bars together


class _Value(NamedTuple):
    """A bar's height, and the ends of the line through it."""

    middle: float
    low: float
    high: float


def draw_forms(report: ReparamReport) -> None:
    """Save the picture that ``report.plot`` names: one panel for accuracy, one for each batch."""
    from matplotlib.figure import Figure

    batches = list(report.rows[0].times)
    figure = Figure(figsize=(4.2 * (1 + len(batches)), 4.4), dpi=120, layout='constrained')
    axes = figure.subplots(1, 1 + len(batches), squeeze=False)[0]
    _bars(axes[0], report, value=_accuracy)
    axes[0].set_title(f'top-1 accuracy on {report.pictures} test pictures', fontsize=10)
    axes[0].set_ylabel('%')
    for axis, batch in zip(axes[1:], batches, strict=True):
        _bars(axis, report, value=partial(_time, batch=batch))
        axis.set_title(f'time of the classifier, {batch} picture{"s" if batch > 1 else ""}', fontsize=10)
        axis.set_ylabel('ms: median, and line from p10 to p90')
    handles, labels = axes[0].get_legend_handles_labels()
    found = dict(zip(labels, handles, strict=True))
    names = [name for name in COLOURS if name in found]
    figure.legend([found[name] for name in names], names, loc='outside lower center', ncols=3, frameon=False)
    where = report.device if report.device == 'cuda' else f'{report.device}, threads: {report.threads}'
    figure.suptitle(f'Folding changes the time, not the answers ({report.data}; {where})', fontsize=12)
    figure.savefig(report.plot)


def _accuracy(row: FormRow) -> _Value:
    return _Value(*[100 * row.accuracy] * 3)


def _time(row: FormRow, *, batch: int) -> _Value:
    time = row.times[batch]
    return _Value(time.median_ms, time.p10_ms, time.p90_ms)


def _bars(axis: Any, report: ReparamReport, *, value: Callable[[FormRow], _Value]) -> None:
    models = list(dict.fromkeys(row.model for row in report.rows))
    for index, model in enumerate(models):
        rows = [row for row in report.rows if row.model == model]
        width = _WIDTH / max(len(rows), 2)
        for place, row in enumerate(rows):
            centre = index + (place - (len(rows) - 1) / 2) * width
            middle, low, high = value(row)
            axis.bar(centre, middle, 0.92 * width, color=COLOURS[row.form], label=row.form)
            if low < high:
                axis.vlines(centre, low, high, color='black', linewidth=1)
            axis.annotate(
                f'{middle:.2f}',
                (centre, max(middle, high)),
                xytext=(0, 3),
                textcoords='offset points',
                ha='center',
                fontsize=8,
            )
    axis.set_xticks(range(len(models)), models)
    axis.margins(y=0.1)
    axis.spines[['top', 'right']].set_visible(False)
