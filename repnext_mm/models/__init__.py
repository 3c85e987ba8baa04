"""What configs name: the arch table, the backbone, heads, and wrappers."""

from .arch import ARCHITECTURES, Arch, resolve_arch
from .box_tta import build_box_tta
from .classifier import Classifier, load_classifier
from .cls_head import build_cls_head
from .convnext_downsample import build_convnext_with_mixed_downsample
from .repnext import RepNeXt
from .repnext_u import UNIT_ARCHITECTURES, RepNeXtU, UnitArch
from .type_name import type_name

__all__ = [
    'ARCHITECTURES',
    'UNIT_ARCHITECTURES',
    'Arch',
    'Classifier',
    'RepNeXt',
    'RepNeXtU',
    'UnitArch',
    'build_box_tta',
    'build_cls_head',
    'build_convnext_with_mixed_downsample',
    'load_classifier',
    'resolve_arch',
    'type_name',
]
