"""The surest classes of a picture, as values and written on the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dataset import Compose, pseudo_collate
from numpy.typing import NDArray

from repnext_mm.errors import UserError
from repnext_mm.models import type_name

_LEGIBLE = 320  # pixels of a picture's short side


class ClassScore(NamedTuple):
    """One class and how sure a classifier is of it."""

    label: int
    name: str | None  # None where nobody named the classes
    score: float  # 0 to 1

    def __str__(self) -> str:
        return f'{self.score:.4f} {self.label}' + ('' if self.name is None else f' ({self.name})')


def top_classes(
    model: Any,
    image: str | Path,
    *,
    pipeline: Sequence[Mapping[str, Any]],
    names: Sequence[str] | None = None,
    count: int = 5,
) -> tuple[ClassScore, ...]:
    """The ``count`` surest classes of one picture, best first, by an MMPretrain classifier in eval mode.

    ``pipeline`` is that of the test data. One without a step that loads files belongs to data in memory (CIFAR); it is
    given the picture so that the network sees RGB. A photograph is turned as its EXIF says, as the drawn one is, where
    the test data (ImageNet, as the authors read it) are not. ``names`` of another number of classes are ignored.

    Raises:
        UserError: the model gives no scores.
    """
    pipeline = [
        {**step, 'color_type': 'color'} if step.get('color_type') == 'color_ignore_orientation' else step
        for step in pipeline
    ]
    with torch.no_grad():
        sample = model.test_step(pseudo_collate([Compose(pipeline)(_loaded(model, image, pipeline))]))[0]
    if 'pred_score' not in sample:
        raise UserError(f'{type(model).__name__} gives no score for each class: take a model that classifies pictures')
    scores = sample.pred_score.flatten().cpu()
    names = names if names is not None and len(names) == len(scores) else None
    best = scores.topk(min(count, len(scores)))
    return tuple(
        ClassScore(label, None if names is None else str(names[label]), score)
        for score, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    )


def draw_classes(image: str | Path, found: Sequence[ClassScore]) -> NDArray[np.uint8]:
    """The picture, (H, W, 3) in BGR, with its classes written on it; a small one is enlarged to be legible."""
    import cv2
    from mmpretrain.structures import DataSample
    from mmpretrain.visualization import UniversalVisualizer

    scores = torch.zeros(1 + max(item.label for item in found))
    scores[[item.label for item in found]] = torch.tensor([item.score for item in found])
    sample = DataSample().set_pred_score(scores).set_pred_label([item.label for item in found])
    # ImageNet's names list synonyms, which a picture has no room for
    names = {item.label: item.name.split(',')[0] for item in found if item.name is not None}
    picture: Any = cv2.imread(str(image))
    small = min(picture.shape[:2]) < _LEGIBLE
    drawn = UniversalVisualizer().visualize_cls(
        picture[..., ::-1], sample, classes=names or None, draw_gt=False, resize=_LEGIBLE if small else None
    )
    return np.ascontiguousarray(drawn[..., ::-1])


def _loaded(model: Any, image: str | Path, pipeline: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a test pipeline starts with: a path, or the pixels."""
    if any('Load' in type_name(step['type']) for step in pipeline):
        return {'img_path': str(image)}
    import cv2

    pixels: Any = cv2.imread(str(image))
    if not getattr(model.data_preprocessor, 'to_rgb', False):
        pixels = np.ascontiguousarray(pixels[..., ::-1])
    return {'img': pixels, 'img_shape': pixels.shape[:2], 'ori_shape': pixels.shape[:2]}
