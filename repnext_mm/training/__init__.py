"""Extensions of the training loop."""

from .layer_decay import BackboneLayerDecayConstructor

__all__ = ['BackboneLayerDecayConstructor']
