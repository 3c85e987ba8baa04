"""A model in train form and fused, run on one image: findings as rows and areas, differences, latency."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.registry import init_default_scope
from numpy.typing import NDArray
from torch import nn

from repnext_mm.apis.config import classes_in_checkpoint, classes_of_config
from repnext_mm.checkpoints import read_checkpoint
from repnext_mm.errors import UserError
from repnext_mm.lab.demo.app_inputs import Pair
from repnext_mm.lab.draw.subject import Seen, Subject, load_subject, see
from repnext_mm.reparam import FusionReport, fuse_checked, relative_error
from repnext_mm.reparam.verify import distance
from repnext_mm.timing import Latency, measure_latency

TRAIN, FUSED = 'train form', 'fused'
MAX_AREAS = 50  # the page gets an image of each
MAX_SIDE = 1200  # pixels; what is shown is made smaller, what is found is not
TOP = 5
_OPACITY = 0.6
_WARMUP_S = 0.5

Area = NDArray[np.bool_] | tuple[int, int, int, int]
"""A mask (H, W), or a box (x1, y1, x2, y2) in pixels."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """One answer: a table, and what is marked in the image under the names that the legend shows."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    areas: Sequence[tuple[Area, str]] = ()
    colors: Mapping[str, str] = field(default_factory=dict)  # of a name in ``areas``
    left_out: int = 0  # findings beyond ``MAX_AREAS``


@dataclass(frozen=True, kw_only=True)
class BothForms:
    """One model twice: as it was trained, and with its backbone fused."""

    subject: Subject
    fused: nn.Module  # the same object where there was nothing to fuse
    report: FusionReport
    scope: str
    classes: tuple[str, ...]
    colors: tuple[str, ...]  # '#rrggbb' of each class
    device: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What both forms make of one image."""

    image: NDArray[np.uint8]  # (H, W, 3), RGB
    input_shape: tuple[int, ...]  # of the network, (1, 3, H, W)
    findings: Findings  # of the fused network
    differences: dict[str, str]  # what is compared: the largest difference; empty where nothing was fused
    latency: dict[str, dict[str, Latency]]  # part of the network: form: milliseconds
    threads: int


def load_forms(pair: Pair) -> BothForms:
    """Read a config and, without trusting pickle, its checkpoint; fuse and verify the backbone.

    Raises:
        UserError: a file cannot be read, or the two do not fit each other.
        RuntimeError: the fused backbone is not within the hook's tolerance.
    """
    subject = load_subject(pair.config, pair.checkpoint)
    assert subject.config is not None
    scope = subject.config.get('default_scope')
    if scope not in FINDINGS or subject.config.get('test_dataloader') is None:
        raise UserError(
            f"config '{pair.config}' (default_scope={scope!r}) cannot be shown: it takes a test_dataloader and a "
            f'default_scope of {", ".join(FINDINGS)}'
        )
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    subject.model.to(device)
    fused, report = fuse_checked(subject.model)
    meta = _dataset_meta(pair, subject)
    classes = tuple(map(str, meta.get('classes') or ()))
    return BothForms(
        subject=subject,
        fused=fused,
        report=report,
        scope=scope,
        classes=classes,
        colors=_colors(meta.get('palette'), count=len(classes)),
        device=device,
    )


@torch.no_grad()
def run_forms(forms: BothForms, path: str, *, score_threshold: float = 0.3, rounds: int = 10) -> Outcome:
    """Run both forms on an image, and time them in turns.

    Args:
        forms: the model.
        path: of an image.
        score_threshold: weaker detections are not shown.
        rounds: of the measurement; each runs everything once.

    Raises:
        UserError: the image cannot be read, or is not for this network.
    """
    init_default_scope(forms.scope)
    seen = see(forms.subject, path)
    image: Any = cv2.imread(path)  # as the pipelines read it
    sample = _predict(forms.fused, seen)
    findings = FINDINGS[forms.scope](sample, forms.classes, forms.colors, score_threshold)
    differences: dict[str, str] = {}
    models = {TRAIN: forms.subject.model}
    if forms.report:
        models[FUSED] = forms.fused
        backbone, fused = forms.subject.backbone, getattr(forms.fused, 'backbone')  # noqa: B009
        error = max(relative_error(fused, backbone, seen.inputs))
        differences['features of the backbone, relative'] = f'{error:.1e}'
        differences |= DIFFERENCES[forms.scope](_predict(forms.subject.model, seen), sample)
    return Outcome(
        image=np.ascontiguousarray(image[..., ::-1]),
        input_shape=tuple(seen.inputs.shape),
        findings=findings,
        differences=differences,
        latency=_latency(models, seen, rounds=rounds, device=forms.device),
        threads=torch.get_num_threads(),
    )


def for_screen(image: NDArray[np.uint8], areas: Sequence[tuple[Area, str]]) -> tuple[NDArray[np.uint8], list[Any]]:
    """An image ``(H, W, 3)`` and its areas as ``gradio.AnnotatedImage`` takes them, made smaller by a whole number."""
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


def _predict(model: Any, seen: Seen) -> Any:
    samples = [sample.clone() for sample in seen.samples or ()]  # results are written into them
    return model(seen.inputs, samples, mode='predict')[0].cpu()


def _latency(models: Mapping[str, Any], seen: Seen, *, rounds: int, device: str) -> dict[str, dict[str, Latency]]:
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for form, model in models.items():
        calls['backbone', form] = partial(model.backbone, seen.inputs)
        calls['whole network', form] = partial(_predict, model, seen)
    found = measure_latency(
        {' '.join(key): call for key, call in calls.items()},
        rounds=rounds,
        warmup_rounds=2,
        warmup_s=_WARMUP_S,
        device=device,
    )
    return {
        part: {form: found[f'{part} {form}'] for form in models} for part in dict.fromkeys(part for part, _ in calls)
    }


def _dataset_meta(pair: Pair, subject: Subject) -> Mapping[str, Any]:
    """Classes and palette of the checkpoint, else those of the config's test data."""
    assert subject.config is not None
    known = classes_in_checkpoint(read_checkpoint(pair.checkpoint))
    try:
        return known or classes_of_config(subject.config)
    except Exception:  # without its data, a data set may raise anything; numbers serve as names then
        return {}


def _colors(palette: Any, *, count: int) -> tuple[str, ...]:
    if isinstance(palette, list | tuple) and len(palette) >= count:
        return tuple('#{:02x}{:02x}{:02x}'.format(*map(int, color)) for color in palette[:count])
    hues = (index * 0.618 % 1 for index in range(count))  # the golden section keeps neighbors apart
    return tuple(
        '#{:02x}{:02x}{:02x}'.format(*(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, 0.95)))
        for hue in hues
    )


def _instances(sample: Any, classes: Sequence[str], colors: Sequence[str], score_threshold: float) -> Findings:
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
        shown |= _color(name, colors, label)
        rows.append((str(index + 1), _name(classes, label), f'{score:.3f}', f'{left}, {top}, {right}, {bottom}'))
    return Findings(
        columns=('', 'class', 'score', 'box: left, top, right, bottom'),
        rows=rows,
        areas=areas,
        colors=shown,
        left_out=left_out,
    )


def _regions(sample: Any, classes: Sequence[str], colors: Sequence[str], score_threshold: float) -> Findings:
    labels = sample.pred_sem_seg.data.squeeze(0).numpy()
    present, counts = np.unique(labels, return_counts=True)
    rows: list[tuple[str, ...]] = []
    areas: list[tuple[Area, str]] = []
    shown: dict[str, str] = {}
    for place in np.argsort(-counts, kind='stable').tolist():
        label, share = int(present[place]), counts[place] / labels.size
        name = _name(classes, label)
        rows.append((name, f'{share:.2%}'))
        if name.lower() != 'background':  # all of the image would be tinted
            areas.append((labels == label, f'{name} {share:.1%}'))
            shown |= _color(areas[-1][1], colors, label)
    return Findings(
        columns=('class', 'share of the pixels'),
        rows=rows,
        areas=areas[:MAX_AREAS],
        colors=shown,
        left_out=max(len(areas) - MAX_AREAS, 0),
    )


def _classes(sample: Any, classes: Sequence[str], colors: Sequence[str], score_threshold: float) -> Findings:
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
"""For each scope: a predicted sample, names and colors of the classes, the lowest score that is shown."""


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
        'logits, relative': f'{distance(b, a):.1e}',
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


def _color(name: str, colors: Sequence[str], label: int) -> dict[str, str]:
    return {name: colors[label]} if label < len(colors) else {}
