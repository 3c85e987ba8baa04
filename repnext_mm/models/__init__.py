"""The networks, and what configs name beside them: heads and wrappers. Registered with mmengine where it is installed.

What is not listed here is imported from the file that holds it.
"""

from repnext_mm.models.box_tta import build_box_tta
from repnext_mm.models.convnext_ablation import build_convnext_with_mixed_downsample
from repnext_mm.models.heads import Classifier, build_cls_head, load_classifier
from repnext_mm.models.layers import depthwise
from repnext_mm.models.mixer_forms import FORMS
from repnext_mm.models.registry import type_name
from repnext_mm.models.repnext import (
    ARCHITECTURES,
    Arch,
    ChunkConv,
    CopyConv,
    Downsample,
    MetaNeXtBlock,
    RepNeXt,
    Stem,
    resolve_arch,
)
from repnext_mm.models.repnext_u import REP_UNITS, UNIT_ARCHITECTURES, RepNeXtU, RepUnit
from repnext_mm.models.token_mixers import RepDWConvM, RepDWConvS

__all__ = [
    'ARCHITECTURES',
    'FORMS',
    'REP_UNITS',
    'UNIT_ARCHITECTURES',
    'Arch',
    'ChunkConv',
    'Classifier',
    'CopyConv',
    'Downsample',
    'MetaNeXtBlock',
    'RepDWConvM',
    'RepDWConvS',
    'RepNeXt',
    'RepNeXtU',
    'RepUnit',
    'Stem',
    'build_box_tta',
    'build_cls_head',
    'build_convnext_with_mixed_downsample',
    'depthwise',
    'load_classifier',
    'resolve_arch',
    'type_name',
]
