"""What a detector, a segmentor or a classifier says of a picture, as rows and areas; and how far two answers differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_AREAS = 50  # the page gets a picture of each
MAX_SIDE = 1200  # pixels; what is shown is made smaller, what is found is not
TOP = 5
_OPACITY = 0.6

Area = NDArray[np.bool_] | tuple[int, int, int, int]
"""A mask (H, W), or a box (x1, y1, x2, y2) in pixels."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """One answer: a table, and what is marked in the picture under the names that the legend shows."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    areas: Sequence[tuple[Area, str]] = ()
    colours: Mapping[str, str] = field(default_factory=dict)  # of a name in ``areas``
    left_out: int = 0  # findings beyond ``MAX_AREAS``


def for_screen(image: NDArray[np.uint8], areas: Sequence[tuple[Area, str]]) -> tuple[NDArray[np.uint8], list[Any]]:
    """A picture ``(H, W, 3)`` and its areas as ``gradio.AnnotatedImage`` takes them, made smaller by a whole number."""
    import cv2

    height, width = image.shape[:2]
    step = -(-max(height, width) // MAX_SIDE)
    small: Any = cv2.resize(image, (-(-width // step), -(-height // step)), interpolation=cv2.INTER_AREA)
    shown: list[Any] = []
    for area, name in areas:
        if isinstance(area, tuple):
            shown.append((tuple(value // step for value in area), name))
        else:
            shown.append((_OPACITY * area[::step, ::step].astype(np.float32), name))
    return small, shown


def _instances(sample: Any, classes: Sequence[str], colours: Sequence[str], score_threshold: float) -> Findings:
    found = sample.pred_instances
    found = found[found.scores >= score_threshold]
    found = found[found.scores.argsort(descending=True, stable=True)]
    left_out = max(len(found) - MAX_AREAS, 0)
    found = found[:MAX_AREAS]
    rows: list[tuple[str, ...]] = []
    areas: list[tuple[Area, str]] = []
    shown: dict[str, str] = {}
    boxes, labels, scores = _boxes(found).tolist(), found.labels.tolist(), found.scores.tolist()
    masks = found.masks.numpy() if 'masks' in found else None
    for index, (box, label, score) in enumerate(zip(boxes, labels, scores, strict=True)):
        left, top, right, bottom = (round(value) for value in box)
        name = f'{index + 1}: {_name(classes, label)} {score:.2f}'  # a number, since names must differ
        area: Area = (left, top, right, bottom) if masks is None else masks[index]
        areas.append((area, name))
        shown |= _colour(name, colours, label)
        rows.append((str(index + 1), _name(classes, label), f'{score:.3f}', f'{left}, {top}, {right}, {bottom}'))
    return Findings(
        columns=('', 'class', 'score', 'box: left, top, right, bottom'),
        rows=rows,
        areas=areas,
        colours=shown,
        left_out=left_out,
    )


def _regions(sample: Any, classes: Sequence[str], colours: Sequence[str], score_threshold: float) -> Findings:
    labels = sample.pred_sem_seg.data.squeeze(0).numpy()
    present, counts = np.unique(labels, return_counts=True)
    rows: list[tuple[str, ...]] = []
    areas: list[tuple[Area, str]] = []
    shown: dict[str, str] = {}
    for place in np.argsort(-counts, kind='stable').tolist():
        label, share = int(present[place]), counts[place] / labels.size
        name = _name(classes, label)
        rows.append((name, f'{share:.2%}'))
        if name.lower() != 'background':  # all of the picture would be tinted
            areas.append((labels == label, f'{name} {share:.1%}'))
            shown |= _colour(areas[-1][1], colours, label)
    return Findings(
        columns=('class', 'share of the pixels'),
        rows=rows,
        areas=areas[:MAX_AREAS],
        colours=shown,
        left_out=max(len(areas) - MAX_AREAS, 0),
    )


def _classes(sample: Any, classes: Sequence[str], colours: Sequence[str], score_threshold: float) -> Findings:
    scores = sample.pred_score
    best = scores.topk(min(TOP, len(scores))).indices.tolist()
    return Findings(
        columns=('class', 'probability'),
        rows=[(_name(classes, label), f'{scores[label].item():.4f}') for label in best],
    )


FINDINGS: dict[str, Callable[[Any, Sequence[str], Sequence[str], float], Findings]] = {
    'mmdet': _instances,
    'mmseg': _regions,
    'mmpretrain': _classes,
}
"""For each scope: a predicted sample, names and colours of the classes, the lowest score that is shown."""


def _other_instances(reference: Any, other: Any) -> dict[str, str]:
    first, second = (_in_order(sample.pred_instances) for sample in (reference, other))
    if first.labels.tolist() != second.labels.tolist():
        return {'number of detections, or their classes': f'{len(first)} and {len(second)} detections'}
    if not len(first):
        return {'detections': 'none in either form'}
    found = {
        'scores': f'{(first.scores - second.scores).abs().max().item():.1e}',
        'boxes, pixels': f'{(_boxes(first) - _boxes(second)).abs().max().item():.1e}',
    }
    if 'masks' in first:
        found['pixels of masks'] = _of_pixels(first.masks != second.masks)
    return found


def _other_regions(reference: Any, other: Any) -> dict[str, str]:
    a, b = reference.seg_logits.data, other.seg_logits.data
    return {
        'logits, relative': f'{((a - b).abs().max() / a.abs().max()).item():.1e}',
        'pixels of another class': _of_pixels(reference.pred_sem_seg.data != other.pred_sem_seg.data),
    }


def _other_classes(reference: Any, other: Any) -> dict[str, str]:
    return {'probabilities': f'{(reference.pred_score - other.pred_score).abs().max().item():.1e}'}


DIFFERENCES: dict[str, Callable[[Any, Any], dict[str, str]]] = {
    'mmdet': _other_instances,
    'mmseg': _other_regions,
    'mmpretrain': _other_classes,
}
"""For each scope: what is compared of two predicted samples, and how far they are apart."""


def _in_order(instances: Any) -> Any:
    """By class, then by score: two forms may list equal scores in another order."""
    return instances[np.lexsort((-instances.scores.numpy(), instances.labels.numpy()))]


def _boxes(instances: Any) -> Any:
    return getattr(instances.bboxes, 'tensor', instances.bboxes)


def _of_pixels(differs: Any) -> str:
    return f'{int(differs.sum())} of {differs.numel():,}'


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if label < len(names) else f'class {label}'


def _colour(name: str, colours: Sequence[str], label: int) -> dict[str, str]:
    return {name: colours[label]} if label < len(colours) else {}
