"""RepNeXt's trainable modules; every linear one states its equivalent kernel."""

from .block import Downsample, MetaNeXtBlock
from .conv_norm import ConvNorm
from .deploy_block import FusedBlock, FusedDownsample
from .head import NormLinear, TwoHeadLinear, TwoHeads
from .layers import build_activation, build_norm, depthwise
from .rep_dw import RepDWConv, RepDWConvM, RepDWConvS
from .rep_unit import REP_UNITS, RepUnit
from .stage import Stage, Stem
from .token_mixer import ChunkConv, CopyConv
from .unit_block import FusedUnitBlock, PatchMerging, PatchStem, SingleBranch, UnitBlock, UnitStage

__all__ = [
    'REP_UNITS',
    'ChunkConv',
    'ConvNorm',
    'CopyConv',
    'Downsample',
    'FusedBlock',
    'FusedDownsample',
    'FusedUnitBlock',
    'MetaNeXtBlock',
    'NormLinear',
    'PatchMerging',
    'PatchStem',
    'RepDWConv',
    'RepDWConvM',
    'RepDWConvS',
    'RepUnit',
    'SingleBranch',
    'Stage',
    'Stem',
    'TwoHeadLinear',
    'TwoHeads',
    'UnitBlock',
    'UnitStage',
    'build_activation',
    'build_norm',
    'depthwise',
]
