"""The networks, one after the other, and what configs name: backbones, heads, wrappers."""

from repnext_mm.models.arch import ARCHITECTURES, Arch, resolve_arch
from repnext_mm.models.block import Downsample, MetaNeXtBlock
from repnext_mm.models.box_tta import build_box_tta
from repnext_mm.models.classifier import Classifier, load_classifier
from repnext_mm.models.cls_head import build_cls_head
from repnext_mm.models.conv_norm import ConvNorm
from repnext_mm.models.convnext_ablation import build_convnext_with_mixed_downsample
from repnext_mm.models.heads import NormLinear, TwoHeadLinear, TwoHeads
from repnext_mm.models.layers import depthwise
from repnext_mm.models.merged_mixer import FORMS
from repnext_mm.models.rep_dw import RepDWConv, RepDWConvM, RepDWConvS
from repnext_mm.models.rep_unit import REP_UNITS, RepUnit
from repnext_mm.models.repnext import RepNeXt
from repnext_mm.models.repnext_u import UNIT_ARCHITECTURES, RepNeXtU, UnitArch
from repnext_mm.models.stage import Stage, Stem
from repnext_mm.models.token_mixer import ChunkConv, CopyConv
from repnext_mm.models.type_name import type_name
from repnext_mm.models.unit_block import PatchMerging, PatchStem, SingleBranch, UnitBlock, UnitStage

__all__ = [
    'ARCHITECTURES',
    'FORMS',
    'REP_UNITS',
    'UNIT_ARCHITECTURES',
    'Arch',
    'ChunkConv',
    'Classifier',
    'ConvNorm',
    'CopyConv',
    'Downsample',
    'MetaNeXtBlock',
    'NormLinear',
    'PatchMerging',
    'PatchStem',
    'RepDWConv',
    'RepDWConvM',
    'RepDWConvS',
    'RepNeXt',
    'RepNeXtU',
    'RepUnit',
    'SingleBranch',
    'Stage',
    'Stem',
    'TwoHeadLinear',
    'TwoHeads',
    'UnitArch',
    'UnitBlock',
    'UnitStage',
    'build_box_tta',
    'build_cls_head',
    'build_convnext_with_mixed_downsample',
    'depthwise',
    'load_classifier',
    'resolve_arch',
    'type_name',
]
