"""The raw material of digit scenes: scikit-learn's handwritten digits and photographs, split for training and test."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from repnext_mm.errors import MissingPackageError, UserError

Split = Literal['train', 'val']

_EVERY_NTH_TO_VAL = 5  # 20 % of each digit class
_TRAIN_WIDTH = 0.6  # the left part of each photograph serves training, the rest serves validation


class Sources(NamedTuple):
    """What one split may draw from."""

    digits: NDArray[np.float32]  # (N, 8, 8), 0 = paper, 1 = ink
    labels: NDArray[np.int64]  # (N,), 0..9
    photos: tuple[NDArray[np.uint8], ...]  # each (H, W, 3), RGB


@lru_cache(maxsize=2)
def load_sources(split: Split) -> Sources:
    """The digits and photograph regions of one split; no digit image and no pixel of a photograph is in both."""
    if split not in get_args(Split):
        raise UserError(f'split={split!r} is unknown: choose one of {get_args(Split)}')
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise MissingPackageError(
            'digit scenes are made from data in scikit-learn: pip install scikit-learn pillow'
        ) from error
    raw = load_digits()
    images, labels = (raw.images / 16).astype(np.float32), raw.target.astype(np.int64)
    chosen = np.isin(np.arange(len(labels)), _val_indices(labels), invert=split == 'train')
    return Sources(images[chosen], labels[chosen], tuple(_region(p, split) for p in load_sample_images().images))


def _val_indices(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Every n-th sample of each class (the file cycles through the classes, so a plain stride would be unfair)."""
    return np.concatenate([np.flatnonzero(labels == digit)[::_EVERY_NTH_TO_VAL] for digit in range(10)])


def _region(photo: NDArray[np.uint8], split: Split) -> NDArray[np.uint8]:
    border = round(photo.shape[1] * _TRAIN_WIDTH)
    return photo[:, :border] if split == 'train' else photo[:, border:]
