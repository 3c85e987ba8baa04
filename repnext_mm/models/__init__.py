"""What configs name: the arch table, the backbone, and a wrapper for testing boxes with augmentation."""

from .arch import ARCHITECTURES, Arch, resolve_arch
from .box_tta import build_box_tta
from .repnext import RepNeXt

__all__ = ['ARCHITECTURES', 'Arch', 'RepNeXt', 'build_box_tta', 'resolve_arch']
