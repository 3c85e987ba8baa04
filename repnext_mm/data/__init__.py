"""Data sets that are made on first use from data in scikit-learn (handwritten digits), and CIFAR-100 in BGR."""

from repnext_mm.data.cifar import build_cifar100
from repnext_mm.data.digit_images import build_digit_images, ensure_digits
from repnext_mm.data.digit_scenes import build_digit_scenes
from repnext_mm.data.fast_coco import build_fast_coco_metric
from repnext_mm.data.foreground_iou import build_foreground_iou
from repnext_mm.data.scene_files import SceneSet, ensure_scenes

__all__ = [
    'SceneSet',
    'build_cifar100',
    'build_digit_images',
    'build_digit_scenes',
    'build_fast_coco_metric',
    'build_foreground_iou',
    'ensure_digits',
    'ensure_scenes',
]
