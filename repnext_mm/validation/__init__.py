"""Proof that a fused model is the model, and what fusing it saves; for any model that can be named."""

from .consistency import Consistency, check_consistency
from .named_models import build_named
from .speed import measure_speed

__all__ = ['Consistency', 'build_named', 'check_consistency', 'measure_speed']
