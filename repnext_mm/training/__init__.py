"""Extensions of the training loop."""

from repnext_mm.training.adaptive_clip import AdaptiveClipAmpOptimWrapper, AdaptiveClipOptimWrapper
from repnext_mm.training.bfloat16 import AdaptiveClipBfloat16OptimWrapper, Bfloat16OptimWrapper
from repnext_mm.training.distillation import DistilledClassifier, distillation_loss
from repnext_mm.training.layer_decay import BackboneLayerDecayConstructor
from repnext_mm.training.param_groups import JoinedGroupsConstructor
from repnext_mm.training.quality_loss import QualityFocalCrossEntropyLoss
from repnext_mm.training.timm_schedule import TimmCosineLR

__all__ = [
    'AdaptiveClipAmpOptimWrapper',
    'AdaptiveClipBfloat16OptimWrapper',
    'AdaptiveClipOptimWrapper',
    'BackboneLayerDecayConstructor',
    'Bfloat16OptimWrapper',
    'DistilledClassifier',
    'JoinedGroupsConstructor',
    'QualityFocalCrossEntropyLoss',
    'TimmCosineLR',
    'distillation_loss',
]
