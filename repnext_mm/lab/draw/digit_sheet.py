"""A sheet of classified digits: what the network says, with its errors in red."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.model import BaseModel
from numpy.typing import NDArray

COLUMNS = 12


class ClassifiedDigit(NamedTuple):
    """A picture, its class, and the class that the network gives it with a score in 0..1."""

    image: NDArray[np.uint8]  # (H, W, 3)
    truth: int
    answer: int
    score: float


def predicted_digits(model: BaseModel, dataset: BaseDataset, *, count: int) -> list[ClassifiedDigit]:
    """Every error of a data set first, then digits spread over it; ``count`` in all."""
    found = [_classified(model, dataset[index]) for index in range(len(dataset))]
    wrong = [digit for digit in found if digit.answer != digit.truth]
    right = [digit for digit in found if digit.answer == digit.truth]
    left = max(count - len(wrong), 0)
    spread = np.linspace(0, len(right) - 1, min(left, len(right))).round().astype(int)
    return [*wrong[:count], *(right[index] for index in spread)]


def draw_digits(digits: Sequence[ClassifiedDigit], *, path: str | Path, title: str) -> None:
    """Save classified digits as one PNG."""
    from matplotlib.figure import Figure

    rows = max(-(-len(digits) // COLUMNS), 1)
    figure = Figure(figsize=(COLUMNS, rows * 1.35 + 0.8), dpi=110, layout='constrained')
    figure.suptitle(f'{title}\nshown: answer and its score; errors first, in red, with the true digit', fontsize=11)
    for axis in figure.subplots(rows, COLUMNS, squeeze=False).reshape(-1):
        axis.set_axis_off()
    for axis, digit in zip(figure.axes, digits, strict=False):
        axis.imshow(digit.image)
        right = digit.answer == digit.truth
        axis.set_title(
            f'{digit.answer}: {digit.score:.2f}' + ('' if right else f' ({digit.truth})'),
            fontsize=9,
            color='black' if right else 'red',
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _classified(model: Any, item: dict[str, Any]) -> ClassifiedDigit:
    with torch.no_grad():
        sample = model.test_step(pseudo_collate([item]))[0].to('cpu')
    image = item['inputs'].permute(1, 2, 0).numpy()
    answer = int(sample.pred_label)
    return ClassifiedDigit(image, int(sample.gt_label), answer, float(sample.pred_score[answer]))
