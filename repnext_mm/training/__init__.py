"""Extensions of the training loop."""

from .adaptive_clip import AdaptiveClipAmpOptimWrapper, AdaptiveClipOptimWrapper
from .distillation import DistilledClassifier, distillation_loss
from .layer_decay import BackboneLayerDecayConstructor
from .timm_schedule import TimmCosineLR

__all__ = [
    'AdaptiveClipAmpOptimWrapper',
    'AdaptiveClipOptimWrapper',
    'BackboneLayerDecayConstructor',
    'DistilledClassifier',
    'TimmCosineLR',
    'distillation_loss',
]
