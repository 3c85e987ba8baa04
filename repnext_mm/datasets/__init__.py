"""Digit scenes: a small detection and segmentation data set that is made on first use."""

from repnext_mm.datasets.digit_scenes import build_digit_scenes
from repnext_mm.datasets.foreground_iou import build_foreground_iou
from repnext_mm.datasets.scene_files import SceneSet, ensure_scenes

__all__ = ['SceneSet', 'build_digit_scenes', 'build_foreground_iou', 'ensure_scenes']
