"""Train over-parameterized classifiers, fold them, and see what that changes: nothing but the time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import Tensor

from repnext_mm.apis import prepare_test
from repnext_mm.apis.build import build_model
from repnext_mm.errors import MissingFileError, UserError
from repnext_mm.lab.bench.law_table import BRANCHES, FUSED, LIBRARY, TRAIN, contestants
from repnext_mm.lab.demo.run import TOLERANCE, quick_options, trained
from repnext_mm.lab.draw.canvas import COLORS, legend_below, new_figure, save_png
from repnext_mm.lab.table import markdown_table
from repnext_mm.reparam import relative_error
from repnext_mm.reparam.fuse import count_norms, count_parameters
from repnext_mm.timing import Latency, measure_latency

BATCHES = (1, 64)  # images at once
SCORE_TOLERANCE = 1e-4  # relative, of the scores of a batch of test images
FOLDERS = {'cifar10': 'cifar-10-batches-py', 'cifar100': 'cifar-100-python'}


@dataclass(frozen=True, kw_only=True)
class FormRow:
    """One network in one form."""

    model: str
    form: str
    accuracy: float  # top-1 on the test images, 0 to 1
    parameters: int
    norms: int
    times: Mapping[int, Latency]  # of the whole classifier, by batch


@dataclass(frozen=True, kw_only=True)
class ReparamReport:
    """What the experiment measured."""

    data: str
    images: int  # tested
    rows: tuple[FormRow, ...]
    score_errors: Mapping[str, float]  # of each model: scores fused against train form, relative
    train_minutes: Mapping[str, float]
    device: str
    threads: int
    table: str
    plot: str


def run_reparam_demo(
    configs: Mapping[str, str | Path],
    *,
    work_dirs: Mapping[str, str | Path],
    out_dir: str | Path,
    data: str = 'digits',
    data_root: str | None = None,
    quick: bool = False,
    fresh: bool = False,
) -> ReparamReport:
    """Train each config unless that was done already, fold the whole classifier, and compare accuracy and time.

    Args:
        configs: a classification config for each name.
        work_dirs: where each name is trained.
        out_dir: for the table and the plot.
        data: ``'digits'``, made on first use, or ``'cifar10'`` or ``'cifar100'``, which must be there.
        data_root: the folder of the data; of CIFAR, the one that holds its unpacked ``cifar-...`` folder.
        quick: a handful of images and one epoch: shows that everything runs, not that it learns.
        fresh: train again although a finished training of the same config is there.

    Raises:
        UserError: the data are not there, or unknown.
        RuntimeError: folding changed the accuracy by more than ``TOLERANCE``, or the scores.
    """
    out_dir = Path(out_dir)
    options = data_options(data, data_root)
    rows, errors, minutes, images = list[FormRow](), dict[str, float](), dict[str, float](), 0
    for name, config_path in configs.items():
        every = {'randomness': {'seed': 0}, **options, **(quick_options(config_path) if quick else {})}
        work_dir = Path(work_dirs[name])
        # copies: merging takes the `_delete_` out of what it merges
        checkpoint, minutes[name] = trained(config_path, work_dir, deepcopy(every), fresh=fresh)
        config = prepare_test(config_path, str(checkpoint), work_dir=str(work_dir), options=deepcopy(every))
        init_default_scope(config.default_scope)
        found, errors[name], images = _compared(name, config, checkpoint, rounds=3 if quick else 50)
        rows += found
    report = ReparamReport(
        data=data,
        images=images,
        rows=tuple(rows),
        score_errors=errors,
        train_minutes=minutes,
        device=get_device(),
        threads=torch.get_num_threads(),
        table=str(out_dir / 'table.json'),
        plot=str(out_dir / 'plot.png'),
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    Path(report.table).write_text(json.dumps(asdict(report), indent=2) + '\n')
    draw_forms(report)
    check_unchanged(report)
    return report


def data_options(data: str, root: str | None) -> dict[str, Any]:
    """What a config of the digits has to change for other data.

    Raises:
        UserError: the data are not there, or unknown.
    """
    if data == 'digits':
        return {} if root is None else {'data_root': root}
    if data not in FOLDERS:
        raise UserError(f"data '{data}' are unknown: choose digits, cifar10 or cifar100")
    root = root or f'data/{data}'
    if not (Path(root) / FOLDERS[data]).is_dir():
        raise MissingFileError(
            f'{data} is not in {root}: put its unpacked folder {FOLDERS[data]} there, or name another --data-root'
        )
    classes = 100 if data == 'cifar100' else 10
    augmented = [
        {'type': 'RandomCrop', 'crop_size': 32, 'padding': 4},
        {'type': 'RandomFlip', 'prob': 0.5, 'direction': 'horizontal'},
    ]
    options: dict[str, Any] = {
        'model.data_preprocessor.num_classes': classes,
        'model.data_preprocessor.to_rgb': False,  # MMPretrain's CIFAR images are RGB
        'model.head.num_classes': classes,
    }
    for loader, split, steps in (('train', 'train', augmented), ('val', 'test', []), ('test', 'test', [])):
        options[f'{loader}_dataloader.dataset'] = {
            '_delete_': True,
            'type': data.upper(),
            'data_root': root,
            'split': split,
            'download': False,
            'pipeline': [*steps, {'type': 'PackInputs'}],
        }
    return options


def check_unchanged(report: ReparamReport) -> None:
    """Raise a ``RuntimeError`` unless every form of a model has the same accuracy and the fused one its scores."""
    for row in report.rows:
        first = next(other for other in report.rows if other.model == row.model)
        if not abs(row.accuracy - first.accuracy) <= TOLERANCE:  # NaN is a difference too
            raise RuntimeError(
                f'{row.model}: accuracy is {first.accuracy:.4f} {first.form} but {row.accuracy:.4f} {row.form}; they '
                f'may differ by {TOLERANCE} at most, so the folding is wrong for this network; please report it'
            )
    for name, error in report.score_errors.items():
        if not error <= SCORE_TOLERANCE:
            raise RuntimeError(
                f'{name}: fused scores differ by {error:.1e} (relative), {SCORE_TOLERANCE:.0e} is the limit: the '
                'folding is wrong for this network; please report it'
            )


def _compared(name: str, config: Config, checkpoint: Path, *, rounds: int) -> tuple[list[FormRow], float, int]:
    """A model's rows, the error of its fused scores, and the number of test images."""
    device = get_device()
    model = build_model(config, checkpoint)
    loader = Runner.build_dataloader(config.test_dataloader)
    images = _images(model, loader, count=max(BATCHES))
    forms = contestants(model, shape=(1, *images.shape[1:]))
    forms = {form: network.to(device) for form, network in forms.items() if form != LIBRARY}
    images = images.to(device)
    accuracies = {form: _accuracy(network, loader, config) for form, network in forms.items()}
    error = max(relative_error(forms[FUSED], model.to(device), images))
    times = {
        batch: measure_latency(
            {form: partial(network, _repeated(images, batch)) for form, network in forms.items()},
            rounds=rounds,
            device=device,
        )
        for batch in BATCHES
    }
    rows = [
        FormRow(
            model=name,
            form=form,
            accuracy=accuracies[form],
            parameters=count_parameters(network),
            norms=count_norms(network),
            times={batch: times[batch][form] for batch in BATCHES},
        )
        for form, network in forms.items()
    ]
    return rows, error, len(loader.dataset)


@torch.no_grad()
def _accuracy(model: Any, loader: Any, config: Config) -> float:
    evaluator = Evaluator(config.test_evaluator)
    for batch in loader:
        evaluator.process(data_samples=model.test_step(batch), data_batch=batch)
    return float(evaluator.evaluate(len(loader.dataset))['accuracy/top1']) / 100


def _images(model: Any, loader: Any, *, count: int) -> Tensor:
    inputs = model.data_preprocessor(next(iter(loader)))['inputs']
    return _repeated(inputs, count)


def _repeated(images: Tensor, count: int) -> Tensor:
    return images.repeat(-(-count // len(images)), 1, 1, 1)[:count]


FORM_COLORS = {BRANCHES: COLORS['gray'], TRAIN: COLORS['orange'], FUSED: COLORS['blue']}
_WIDTH = 0.8  # of a model's bars together


class _Value(NamedTuple):
    """A bar's height, and the ends of the line through it."""

    middle: float
    low: float
    high: float


def draw_forms(report: ReparamReport) -> None:
    """Save the image that ``report.plot`` names: one panel for accuracy, one for each batch."""
    batches = list(report.rows[0].times)
    where = report.device if report.device == 'cuda' else f'{report.device}, threads: {report.threads}'
    title = f'Folding changes the time, not the answers ({report.data}; {where})'
    figure = new_figure((4.2 * (1 + len(batches)), 4.4), title)
    axes = figure.subplots(1, 1 + len(batches), squeeze=False)[0]
    _bars(axes[0], report, value=_accuracy_bar)
    axes[0].set_title(f'top-1 accuracy on {report.images} test images', fontsize=10)
    axes[0].set_ylabel('%')
    for axis, batch in zip(axes[1:], batches, strict=True):
        _bars(axis, report, value=partial(_time_bar, batch=batch))
        axis.set_title(f'time of the classifier, {batch} image{"s" if batch > 1 else ""}', fontsize=10)
        axis.set_ylabel('ms: median, and line from p10 to p90')
    legend_below(figure, order=FORM_COLORS, columns=3)
    save_png(figure, report.plot)


def _accuracy_bar(row: FormRow) -> _Value:
    return _Value(*[100 * row.accuracy] * 3)


def _time_bar(row: FormRow, *, batch: int) -> _Value:
    time = row.times[batch]
    return _Value(time.median_ms, time.p10_ms, time.p90_ms)


def _bars(axis: Any, report: ReparamReport, *, value: Callable[[FormRow], _Value]) -> None:
    models = list(dict.fromkeys(row.model for row in report.rows))
    for index, model in enumerate(models):
        rows = [row for row in report.rows if row.model == model]
        width = _WIDTH / max(len(rows), 2)
        for place, row in enumerate(rows):
            center = index + (place - (len(rows) - 1) / 2) * width
            middle, low, high = value(row)
            axis.bar(center, middle, 0.92 * width, color=FORM_COLORS[row.form], label=row.form)
            if low < high:
                axis.vlines(center, low, high, color='black', linewidth=1)
            axis.annotate(
                f'{middle:.2f}',
                (center, max(middle, high)),
                xytext=(0, 3),
                textcoords='offset points',
                ha='center',
                fontsize=8,
            )
    axis.set_xticks(range(len(models)), models)
    axis.margins(y=0.1)
    axis.spines[['top', 'right']].set_visible(False)


def format_forms(report: ReparamReport) -> str:
    """A Markdown table, a row per form; speed-ups are against the first form of each model."""
    head = ['model', 'form', 'top-1 accuracy', 'parameters', 'norms']
    for batch in report.rows[0].times:
        head += [f'{batch} image{"s" if batch > 1 else ""}, ms (p10 to p90)', 'speed-up']
    rows = [_cells(row, first=next(other for other in report.rows if other.model == row.model)) for row in report.rows]
    return markdown_table(head, rows, texts=2)


def _cells(row: FormRow, *, first: FormRow) -> list[str]:
    cells = [row.model, row.form, f'{row.accuracy:.4f}', f'{row.parameters:,}', str(row.norms)]
    for batch, time in row.times.items():
        cells += [
            f'{time.median_ms:.2f} ({time.p10_ms:.2f} to {time.p90_ms:.2f})',
            f'{first.times[batch].median_ms / time.median_ms:.2f}',
        ]
    return cells
