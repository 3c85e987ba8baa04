"""Truth beside prediction: marked by the libraries' own visualizers, of classifiers as titles."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from numpy.typing import NDArray
from torch import nn

from repnext_mm.apis import prepare_test
from repnext_mm.apis.build import build_model
from repnext_mm.apis.config import innermost_datasets
from repnext_mm.apis.safe_loading import reading_safely
from repnext_mm.errors import UserError
from repnext_mm.lab.draw.canvas import legend_below, new_grid, save_png
from repnext_mm.models import type_name
from repnext_mm.reparam import fuse_checked

MIN_SCORE = 0.5  # detections below it are not drawn
PAIRS_IN_A_ROW = 2
IMAGES_IN_A_ROW = 8
_OPACITY = 0.55
_INCHES = 12.0  # width of a sheet


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
    """Save predictions and ground truth of test images of a config, spread over the data set; see ``draw_sheet``.

    Raises:
        UserError: one sentence with the value, the rule and the way out.
    """
    if count < 1:
        raise UserError(f'count={count}: draw at least 1 image')
    config = prepare_test(config_path, checkpoint, options=options)
    scope = config.get('default_scope')
    if scope not in ('mmdet', 'mmseg', 'mmpretrain'):
        raise UserError(f"default_scope={scope!r} cannot be drawn: give a config of 'mmdet', 'mmseg' or 'mmpretrain'")
    init_default_scope(scope)
    model: Any = build_model(config, checkpoint, trust_pickle=trust_pickle)
    missing = missing_truth(config, model)
    if missing is not None:
        raise UserError(
            f"the test pipeline of '{config_path}' does not load the ground truth that the sheet shows: add {missing} "
            'to it, or use tools/infer.py'
        )
    if fuse:
        model, _ = fuse_checked(model)
    with reading_safely(trust_pickle=trust_pickle):
        dataset = DATASETS.build(config.test_dataloader.dataset)
    total = len(dataset)
    dataset = dataset.get_subset(np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())
    title = f'{Path(config_path).stem}, {"fused" if fuse else "train form"}: {len(dataset)} of {total} test images'
    return draw_sheet(model, dataset, path, count=count, title=title)


def draw_sheet(model: nn.Module, dataset: BaseDataset, path: str | Path, *, count: int, title: str) -> Path:
    """Save images of a data set as one PNG.

    Of a detector, boxes are drawn, and masks where it predicts them; of a segmentor, the regions of all classes but
    background: the first ``count`` images, each twice. Of a classifier, ``count`` images with the answer, its score
    and, if it is wrong, the true class: every error first, then images spread over the data set.
    """
    if hasattr(model, 'head'):
        return _draw_classes(model, dataset, path, count=count, title=title)
    pairs = [drawn_pair(model, dataset, index) for index in range(min(count, len(dataset)))]
    rows = -(-len(pairs) // PAIRS_IN_A_ROW)
    side = _INCHES / (2 * PAIRS_IN_A_ROW)
    figure, axes = new_grid(rows, 2 * PAIRS_IN_A_ROW, (_INCHES, rows * side + 1.2), title)
    panels = [panel for pair in pairs for panel in (('ground truth', pair.truth), ('prediction', pair.prediction))]
    for axis, (name, image) in zip(axes.flat, panels, strict=False):
        axis.imshow(image)
        axis.set_title(name, fontsize=11)
    regions = sorted(set().union(*(pair.regions for pair in pairs)))
    if regions:
        legend_below(figure, handles=[_patch(dataset, label) for label in regions], columns=min(len(regions), 10))
    return save_png(figure, path)


class Pair(NamedTuple):
    """An image twice, ``(H, W, 3)`` RGB, marked with the truth and with the prediction."""

    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    regions: Set[int]  # the classes of marked regions, which carry no names


@torch.no_grad()
def drawn_pair(model: Any, dataset: BaseDataset, index: int) -> Pair:
    """An image of a data set, in gray so that color is left to the marks, with truth and prediction."""
    sample = model.test_step(pseudo_collate([dataset[index]]))[0].to('cpu')
    image: Any = cv2.cvtColor(cv2.imread(sample.img_path, cv2.IMREAD_GRAYSCALE), cv2.COLOR_GRAY2RGB)
    if 'pred_sem_seg' in sample:
        return _regions(image, sample, dataset)
    visualizer: Any = VISUALIZERS.get('mmdet.DetLocalVisualizer')(line_width=1, alpha=_OPACITY)
    visualizer.dataset_meta = dataset.metainfo
    truth = sample.gt_instances
    truth.bboxes = getattr(truth.bboxes, 'tensor', truth.bboxes)  # it takes no box objects
    drawn = []
    for draw_gt in (True, False):
        visualizer.add_datasample('', image, sample, draw_gt=draw_gt, draw_pred=not draw_gt, pred_score_thr=MIN_SCORE)
        drawn.append(visualizer.get_image())
    truth_image, prediction = drawn
    return Pair(truth_image, prediction, frozenset())


def marked_classes(dataset: BaseDataset) -> set[int]:
    """The classes of a segmentation data set that are marked: all but those called background and the ignored label."""
    names = dataset.metainfo.get('classes') or ()
    ignored = getattr(dataset, 'ignore_index', None)
    return {label for label, name in enumerate(names) if name.lower() != 'background' and label != ignored}


def missing_truth(config: Config, model: Any) -> str | None:
    """The step that the test pipeline lacks to load the ground truth, if any."""
    steps = next(innermost_datasets(config.test_dataloader['dataset']))['pipeline']
    loading = [step for step in steps if 'Annotations' in type_name(step['type'])]
    if config.default_scope == 'mmpretrain' or (config.default_scope == 'mmseg' and loading):
        return None  # a classifier's data always have it
    if config.default_scope == 'mmseg':
        return 'LoadAnnotations'
    option = 'with_mask' if model.with_mask else 'with_bbox'
    there = any(step.get(option, option == 'with_bbox') for step in loading)  # boxes by default
    return None if there else f'LoadAnnotations with {option}=True'


def _regions(image: NDArray[np.uint8], sample: Any, dataset: BaseDataset) -> Pair:
    visualizer: Any = VISUALIZERS.get('mmseg.SegLocalVisualizer')(alpha=_OPACITY)
    visualizer.dataset_meta = dataset.metainfo
    marked = sorted(marked_classes(dataset))
    drawn, labels = [], set[int]()
    for kind in ('gt_sem_seg', 'pred_sem_seg'):
        classes = sample.get(kind).data.squeeze(0).numpy()
        show = np.isin(classes, marked)
        truth = kind == 'gt_sem_seg'
        visualizer.add_datasample('', image, sample, draw_gt=truth, draw_pred=not truth, with_labels=False)
        drawn.append(np.where(show[..., None], visualizer.get_image(), image))
        labels |= set(np.unique(classes[show]).tolist())
    truth_image, prediction = drawn
    return Pair(truth_image, prediction, labels)


def _patch(dataset: BaseDataset, label: int) -> Any:
    from matplotlib.patches import Patch

    color = [part / 255 for part in dataset.metainfo['palette'][label]]
    return Patch(color=color, label=dataset.metainfo['classes'][label])


class _Classified(NamedTuple):
    image: NDArray[np.uint8]  # (H, W, 3), RGB
    truth: int
    answer: int
    score: float  # of the answer, 0 to 1


def _draw_classes(model: Any, dataset: BaseDataset, path: str | Path, *, count: int, title: str) -> Path:
    found = [_classified(model, dataset[index]) for index in range(len(dataset))]
    wrong = [item for item in found if item.answer != item.truth]
    right = [item for item in found if item.answer == item.truth]
    spread = np.linspace(0, len(right) - 1, min(max(count - len(wrong), 0), len(right))).round().astype(int)
    rows = -(-count // IMAGES_IN_A_ROW)
    text = f'{title}, {len(wrong)} wrong\nanswer and its score; errors first, in red, with the true class'
    figure, axes = new_grid(rows, IMAGES_IN_A_ROW, (_INCHES, 1.8 * rows + 0.9), text)
    names = dataset.metainfo['classes']
    for axis, item in zip(axes.flat, [*wrong[:count], *(right[index] for index in spread)], strict=False):
        axis.imshow(item.image)
        words = f'{names[item.answer]}: {item.score:.2f}'
        if item.answer != item.truth:
            words += f'\n({names[item.truth]})'
        axis.set_title(words, fontsize=8, color='black' if item.answer == item.truth else 'red')
    return save_png(figure, path)


@torch.no_grad()
def _classified(model: Any, item: dict[str, Any]) -> _Classified:
    sample = model.test_step(pseudo_collate([item]))[0].to('cpu')
    image = item['inputs'].permute(1, 2, 0).numpy()[..., ::-1]  # pipelines load BGR
    answer = int(sample.pred_label)
    return _Classified(image, int(sample.gt_label), answer, float(sample.pred_score[answer]))
