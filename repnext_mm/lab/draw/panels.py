"""Predictions and ground truth of validation pictures as panels to draw, for detectors and segmentors alike."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.model import BaseModel
from numpy.typing import NDArray

MIN_SCORE = 0.5  # detections below it are not drawn


class Mark(NamedTuple):
    """One coloured region of a panel; detections also have a box (x1, y1, x2, y2) and, if predicted, a score."""

    mask: NDArray[np.bool_]  # (H, W); False everywhere where there is a box only
    label: int  # index into the classes
    box: tuple[float, float, float, float] | None = None
    score: float | None = None


class Panel(NamedTuple):
    """A picture and what is marked in it."""

    image: NDArray[np.uint8]  # (H, W, 3), RGB
    marks: tuple[Mark, ...]


def predicted_pairs(model: BaseModel, dataset: BaseDataset, *, count: int) -> list[tuple[Panel, Panel]]:
    """Ground truth and prediction of the first pictures of a data set."""
    marked = marked_classes(dataset)
    return [_pair(model, dataset[index], marked) for index in range(min(count, len(dataset)))]


def marked_classes(dataset: BaseDataset) -> Set[int]:
    """The classes of a segmentation data set that are marked: all but those called background and the ignored label."""
    names = dataset.metainfo.get('classes') or ()
    ignored = getattr(dataset, 'ignore_index', None)
    return {label for label, name in enumerate(names) if name.lower() != 'background' and label != ignored}


def _pair(model: BaseModel, item: dict[str, Any], marked: Set[int]) -> tuple[Panel, Panel]:
    import cv2

    with torch.no_grad():
        sample = model.test_step(pseudo_collate([item]))[0].to('cpu')
    bgr: Any = cv2.imread(sample.img_path)
    image = np.ascontiguousarray(bgr[..., ::-1])
    if 'pred_sem_seg' in sample:
        return Panel(image, _regions(sample.gt_sem_seg, marked)), Panel(image, _regions(sample.pred_sem_seg, marked))
    size = image.shape[0], image.shape[1]
    return Panel(image, _instances(sample.gt_instances, size)), Panel(image, _instances(sample.pred_instances, size))


def _regions(labels: Any, marked: Set[int]) -> tuple[Mark, ...]:
    """A region for each marked class; other labels are background, or ignored as the 255 of unlabelled pixels is."""
    classes = labels.data.squeeze(0).numpy()
    return tuple(Mark(classes == label, int(label)) for label in np.unique(classes) if int(label) in marked)


def _instances(instances: Any, size: tuple[int, int]) -> tuple[Mark, ...]:
    scores = instances.scores.tolist() if 'scores' in instances else [None] * len(instances)
    boxes = getattr(instances.bboxes, 'tensor', instances.bboxes).tolist()
    marks = (
        Mark(np.asarray(mask, bool), label, tuple(box), score)
        for mask, label, box, score in zip(
            _masks(instances, size), instances.labels.tolist(), boxes, scores, strict=True
        )
    )
    shown = [mark for mark in marks if mark.score is None or mark.score >= MIN_SCORE]
    return tuple(sorted(shown, key=lambda mark: mark.score or 0.0))  # the surest are drawn last, on top


def _masks(instances: Any, size: tuple[int, int]) -> Any:
    """(N, H, W): bitmaps or polygons in the ground truth, a tensor if predicted, nothing where there are boxes only."""
    if 'masks' not in instances:
        return np.zeros((len(instances), *size), bool)
    masks = instances.masks
    return masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks
