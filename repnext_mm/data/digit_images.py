"""Handwritten digits as a stock MMPretrain data set: images in one folder per class, made on first use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from repnext_mm._files import make_once
from repnext_mm.data.scene_files import CLASSES, must, read_json
from repnext_mm.data.sources import Split, load_sources
from repnext_mm.errors import UserError

VERSION = 1  # raise it whenever the images change
INFO = 'digits.json'


@DATASETS.register_module(name='DigitImages')
def build_digit_images(
    *,
    split: Split,
    data_root: str = 'data/digits',
    size: int = 32,
    pipeline: Sequence[Any] = (),
    test_mode: bool = False,
    lazy_init: bool = False,
    indices: int | Sequence[int] | None = None,
) -> BaseDataset:
    """Write scikit-learn's handwritten digits unless they are there, and return MMPretrain's ``CustomDataset``.

    1433 images to train and 364 to validate, of 8x8 pixels enlarged to ``size``; a function in the root registry, so
    that MMPretrain is imported late. The other arguments are those of the stock data set.

    Raises:
        UserError: ``split`` or ``size`` is unknown.
        FileInTheWayError: ``data_root`` holds something else.
    """
    if split not in ('train', 'val'):
        raise UserError(f"split={split!r} is unknown: choose 'train' or 'val'")
    ensure_digits(data_root, size=size)
    from mmpretrain.datasets import CustomDataset

    return CustomDataset(
        data_root=data_root,
        data_prefix=split,
        metainfo={'classes': CLASSES},
        pipeline=list(pipeline),
        test_mode=test_mode,
        lazy_init=lazy_init,
        indices=indices,
    )


def ensure_digits(root: str | Path, *, size: int = 32) -> bool:
    """Make the folder of digits unless it is there; True if this call made it.

    Raises:
        UserError: ``size`` is below 8 pixels.
        FileInTheWayError: the folder holds something else.
    """
    if not isinstance(size, int) or size < 8:
        raise UserError(f'size={size!r} is too small: the digits have 8x8 pixels')
    info = {'description': 'handwritten digits', 'version': VERSION, 'size': size}

    def write(folder: Path) -> None:
        for split in ('train', 'val'):
            _write_split(folder / split, split, size)
        (folder / INFO).write_text(json.dumps(info))

    return make_once(
        root, kind='handwritten digits', info=info, read_info=lambda folder: read_json(folder / INFO), write=write
    )


def _write_split(folder: Path, split: Split, size: int) -> None:
    import cv2

    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    sources = load_sources(split)
    for index, (digit, label) in enumerate(zip(sources.digits, sources.labels, strict=True)):
        gray = np.clip(cv2.resize(255 * (1 - digit), (size, size), interpolation=cv2.INTER_CUBIC), 0, 255)
        path = folder / str(label) / f'{index:04d}.png'
        must(cv2.imwrite(str(path), np.repeat(gray.round().astype(np.uint8)[..., None], 3, axis=2)), folder)
