"""CIFAR-100 in the channel order that OpenMMLab's augmentation expects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS


@DATASETS.register_module(name='CIFAR100InBGR')
def build_cifar100(*, pipeline: Sequence[Any] = (), **options: Any) -> BaseDataset:
    """MMPretrain's ``CIFAR100`` with images in BGR, as those from files are; a function, to import MMPretrain late.

    The stock data set gives RGB. What weighs colors to find a gray image (RandAugment's color and contrast) then takes
    red for blue: up to 39 of 255 levels off.

    Args:
        pipeline: what follows, as for files in BGR.
        options: the other arguments of MMPretrain's data set, such as ``split='train'``.
    """
    from mmpretrain.datasets import CIFAR100

    return CIFAR100(pipeline=[rgb_to_bgr, *pipeline], **options)


def rgb_to_bgr(results: dict[str, Any]) -> dict[str, Any]:
    """Reverse the channels of ``results['img']``, (H, W, 3)."""
    return {**results, 'img': np.ascontiguousarray(results['img'][..., ::-1])}
