"""Keys that older versions of the OpenMMLab packages named otherwise, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from .read import StateDict

# (pattern in a file of mmdet 2.x or mmseg 0.x, name in mmdet 3.x or mmseg 1.x). Empty: every part of Mask R-CNN and
# Semantic FPN kept its names, which tests/checkpoints checks against lists of the old ones.
RENAMED: tuple[tuple[str, str], ...] = ()


def current_names(state: StateDict) -> StateDict:
    """A whole model's state dict under the names of the versions that this package supports."""
    renamed: StateDict = {}
    for key, value in state.items():
        for pattern, replacement in RENAMED:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def classifier_names(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A classification file of the authors or of timm under the names of MMPretrain's classifiers.

    There the backbone has the prefix ``backbone.``, and a fused head is called ``head.fc``. A state dict of anything
    else, or for another model than a classifier, comes back as it is.

    Args:
        state: the weights of the file.
        target: the state dict of the model that they are for.
    """
    tops = {key.split('.')[0] for key in target}
    if tops != {'backbone', 'head'} or not {key.split('.')[0] for key in state} >= {'stem', 'stages', 'head'}:
        return state
    renamed = {key if key.startswith('head.') else f'backbone.{key}': value for key, value in state.items()}
    return {re.sub(r'^head\.(weight|bias)$', r'head.fc.\1', key): value for key, value in renamed.items()}
