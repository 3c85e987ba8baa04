"""RepNeXt's trainable modules; every linear one states its equivalent kernel."""

from .block import Downsample, MetaNeXtBlock
from .conv_norm import ConvNorm
from .deploy_block import FusedBlock, FusedDownsample
from .head import NormLinear, TwoHeadLinear, TwoHeads
from .layers import build_activation, build_norm, depthwise
from .rep_dw import RepDWConv, RepDWConvM, RepDWConvS
from .stage import Stage, Stem
from .token_mixer import ChunkConv, CopyConv

__all__ = [
    'ChunkConv', 'ConvNorm', 'CopyConv', 'Downsample', 'FusedBlock', 'FusedDownsample', 'MetaNeXtBlock', 'NormLinear',
    'RepDWConv', 'RepDWConvM', 'RepDWConvS', 'Stage', 'Stem', 'TwoHeadLinear', 'TwoHeads', 'build_activation',
    'build_norm', 'depthwise',
]  # fmt: skip
