"""One digit scene: handwritten digits of random size, color and place on a crop of a photograph."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from repnext_mm.data.sources import Sources, Split, load_sources

SIZE_RANGE = (20, 90)  # pixels, longer side of a digit before anything covers it
COUNT_RANGE = (3, 8)  # digits in a scene
MIN_VISIBLE = 0.8  # of a digit's own pixels; a digit that would leave less of another is placed again

_SPLIT_STREAM: dict[Split, int] = {'train': 0, 'val': 1}
_CANVAS = 128  # the digit is drawn once at this size and then reduced, which keeps its edge smooth
_MIN_CONTRAST = 100.0  # of the strongest channel, out of 255


class Scene(NamedTuple):
    """An image and its visible instances; ``instances[y, x]`` is 0 for background, else 1 + the instance's index."""

    image: NDArray[np.uint8]  # (H, W, 3), RGB
    instances: NDArray[np.uint8]  # (H, W)
    labels: tuple[int, ...]  # digit of each instance

    def semantic(self) -> NDArray[np.uint8]:
        """ADE-style labels: 0 is background, 1..10 are the digits 0..9."""
        return np.array([0, *(label + 1 for label in self.labels)], np.uint8)[self.instances]


def compose_scene(*, split: Split, index: int, seed: int = 0, size: int = 256) -> Scene:
    """The scene of this split, index and seed: the same one in whatever order or process scenes are made."""
    sources = load_sources(split)
    rng = np.random.default_rng([seed, _SPLIT_STREAM[split], index])
    image = _background(sources.photos, size, rng)
    instances = np.zeros((size, size), np.uint8)
    labels: list[int] = []
    areas: list[int] = []  # uncovered area of each digit
    wanted = int(rng.integers(COUNT_RANGE[0], COUNT_RANGE[1], endpoint=True))
    tries = 0
    # A crowded scene may stay below the wanted number, never below the smallest one.
    while len(labels) < wanted and (tries < 20 * wanted or len(labels) < COUNT_RANGE[0]):
        tries += 1
        alpha, label = _digit(sources, rng)
        height, width = alpha.shape
        top, left = (int(rng.integers(0, size - side, endpoint=True)) for side in (height, width))
        window = np.s_[top : top + height, left : left + width]
        covered = np.where(alpha > 0.5, 0, instances[window])
        trial = instances.copy()
        trial[window] = covered
        visible = np.bincount(trial.ravel(), minlength=len(areas) + 1)[1:]
        if any(seen < MIN_VISIBLE * area for seen, area in zip(visible, areas, strict=True)):
            continue
        color = _color(image[window], alpha, rng)
        image[window] = (1 - alpha[..., None]) * image[window] + alpha[..., None] * color
        labels.append(label)
        areas.append(int((alpha > 0.5).sum()))
        trial[window][alpha > 0.5] = len(labels)
        instances = trial
    return Scene(np.round(image).astype(np.uint8), instances, tuple(labels))


def _background(photos: tuple[NDArray[np.uint8], ...], size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A square crop of a photograph at a random scale, perhaps mirrored, with its light and tint varied."""
    import cv2

    photo = photos[rng.integers(len(photos))]
    side = int(rng.integers(120, min(photo.shape[:2]), endpoint=True))
    top, left = (int(rng.integers(0, extent - side, endpoint=True)) for extent in photo.shape[:2])
    crop = cv2.resize(photo[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)
    crop = crop[:, :: rng.choice([-1, 1])]
    tinted = crop[..., rng.permutation(3)].astype(np.float32) * rng.uniform(0.6, 1.1) + rng.uniform(-20, 20, 3)
    return np.clip(tinted, 0, 255).astype(np.float32)


def _digit(sources: Sources, rng: np.random.Generator) -> tuple[NDArray[np.float32], int]:
    """Opacity of a random digit, (h, w) in 0..1, cut to its pixels above one half, and which digit it is."""
    import cv2

    chosen = int(rng.integers(len(sources.labels)))
    # An 8x8 digit fills its square: a margin of 1 keeps its edge smooth there too.
    padded = np.pad(sources.digits[chosen], 1)
    drawn = cv2.resize(padded, (_CANVAS, _CANVAS), interpolation=cv2.INTER_CUBIC)
    # Pencil strokes of 8x8 scans are gray at their rims: the ramp puts the edge at 0.45 of full ink.
    ink = _cut(np.clip((drawn - 0.3) / 0.3, 0, 1))
    longer = int(rng.integers(SIZE_RANGE[0] + 2, SIZE_RANGE[1], endpoint=True))
    scale = longer / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    alpha = _cut(cv2.resize(ink, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR))
    return alpha, int(sources.labels[chosen])


def _cut(alpha: NDArray[np.float32]) -> NDArray[np.float32]:
    """The smallest window that holds all pixels above one half."""
    rows, columns = (np.flatnonzero((alpha > 0.5).any(axis)) for axis in (1, 0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _color(under: NDArray[np.float32], alpha: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A color that differs visibly from what lies under the digit."""
    mean = under[alpha > 0.5].mean(axis=0)
    while True:
        color = rng.uniform(0, 255, 3).astype(np.float32)
        if np.abs(color - mean).max() >= _MIN_CONTRAST:
            return color
