"""Keys that older versions of the OpenMMLab packages named otherwise, as data."""

from __future__ import annotations

import re

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
