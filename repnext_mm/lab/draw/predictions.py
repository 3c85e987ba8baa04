"""A sheet of results: what a checkpoint says of its test pictures, beside the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from repnext_mm.apis import prepare_test
from repnext_mm.apis.config import innermost_datasets
from repnext_mm.apis.safe_loading import reading_safely
from repnext_mm.apis.weight_files import load_model
from repnext_mm.hooks import FuseBackboneHook
from repnext_mm.lab.draw.canvas import new_figure, save_png
from repnext_mm.lab.draw.digit_sheet import ClassifiedDigit, predicted_digits
from repnext_mm.lab.draw.pair_sheet import draw_sheet
from repnext_mm.lab.draw.panels import Panel, predicted_pairs
from repnext_mm.models import type_name

_COLUMNS = 8


def draw_predictions(
    config_path: str | Path,
    checkpoint: str,
    path: str | Path,
    *,
    count: int = 6,
    fuse: bool = True,
    trust_pickle: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Save predictions and ground truth of test pictures of a config.

    Pictures are spread over the data set. Of a detector, boxes are drawn, and masks if it predicts them; of a
    segmentor, the regions of all classes but background; of a classifier, ``count`` pictures with answer, score and, if
    it is wrong, the true class.

    Raises:
        FileNotFoundError, TypeError, ValueError: one sentence with the value, the rule and the way out.
    """
    if count < 1:
        raise ValueError(f'count={count} pictures make no sheet: take at least 1')
    config = prepare_test(config_path, checkpoint, options=options)
    scope = config.get('default_scope')
    if scope not in ('mmdet', 'mmseg', 'mmpretrain'):
        raise ValueError(f"default_scope={scope!r} has no sheet: give a config of 'mmdet', 'mmseg' or 'mmpretrain'")
    init_default_scope(scope)
    model: Any = load_model(config, checkpoint, trust_pickle=trust_pickle).eval()
    missing = _missing_truth(config, model)
    if missing is not None:
        raise ValueError(
            f"the test pipeline of '{config_path}' loads no truth, which the sheet shows: put {missing} into it, or "
            'use tools/infer.py'
        )
    if fuse:
        model, _ = FuseBackboneHook().fuse_backbone(model)
    with reading_safely(trust_pickle=trust_pickle):
        dataset = DATASETS.build(config.test_dataloader.dataset)
    total, classes = len(dataset), dataset.metainfo['classes']
    dataset = dataset.get_subset(np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())
    title = f'{Path(config_path).stem}, {"fused" if fuse else "train form"}: {len(dataset)} of {total} test pictures'
    if scope == 'mmpretrain':
        return _draw_classes(predicted_digits(model, dataset, count=count), classes, path, title=title)
    pairs = predicted_pairs(model, dataset, count=count)
    if not any(panel.marks for pair in pairs for panel in pair):
        raise ValueError(f'nothing is marked in {len(pairs)} pictures of {config_path}, neither found nor true')
    pairs, shown = occurring(pairs)
    palette = dataset.metainfo['palette']
    draw_sheet(
        pairs,
        path=path,
        title=title,
        classes=[classes[label] for label in shown],
        palette=[palette[label] for label in shown],
    )
    return Path(path)


def occurring(pairs: Sequence[tuple[Panel, Panel]]) -> tuple[list[tuple[Panel, Panel]], list[int]]:
    """The same panels with labels counted among those that occur, and these labels: a legend must not list them all."""
    shown = sorted({mark.label for pair in pairs for panel in pair for mark in panel.marks})

    def renamed(panel: Panel) -> Panel:
        return panel._replace(marks=tuple(mark._replace(label=shown.index(mark.label)) for mark in panel.marks))

    return [(renamed(truth), renamed(found)) for truth, found in pairs], shown


def _missing_truth(config: Config, model: Any) -> str | None:
    """The step that the test pipeline lacks to have a truth to compare with, if any."""
    steps = next(innermost_datasets(config.test_dataloader['dataset']))['pipeline']
    loading = [step for step in steps if 'Annotations' in type_name(step['type'])]
    if config.default_scope == 'mmpretrain' or (config.default_scope == 'mmseg' and loading):
        return None  # a classifier's data always have it
    if config.default_scope == 'mmseg':
        return 'LoadAnnotations'
    option = 'with_mask' if model.with_mask else 'with_bbox'
    there = any(step.get(option, option == 'with_bbox') for step in loading)  # boxes by default
    return None if there else f'LoadAnnotations with {option}=True'


def _draw_classes(found: Sequence[ClassifiedDigit], classes: Sequence[str], path: str | Path, *, title: str) -> Path:
    rows = -(-len(found) // _COLUMNS)
    wrong = sum(item.answer != item.truth for item in found)
    figure = new_figure(
        (1.6 * _COLUMNS, 1.9 * rows + 0.9),
        (f'{title}, {wrong} wrong\nanswer and its score; errors first, in red, with the true class'),
    )
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).reshape(-1)
    for axis in axes:
        axis.set_axis_off()
    for axis, item in zip(axes, found, strict=False):
        axis.imshow(item.image[..., ::-1])  # pipelines load BGR
        right = item.answer == item.truth
        text = f'{classes[item.answer]}: {item.score:.2f}' + ('' if right else f'\n({classes[item.truth]})')
        axis.set_title(text, fontsize=8, color='black' if right else 'red')
    return save_png(figure, path)
