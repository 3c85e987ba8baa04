"""Registers everything that configs name when it is imported: by the package, or by its command before a verb runs."""

from repnext_mm import data, training  # noqa: F401
from repnext_mm.hooks import FuseBackboneHook
from repnext_mm.models import RepNeXt, RepNeXtU

__all__ = ['FuseBackboneHook', 'RepNeXt', 'RepNeXtU']
