"""Adapters to mmengine's loops."""

from .fuse_backbone import FuseBackboneHook
from .strict_load import StrictLoadHook

__all__ = ['FuseBackboneHook', 'StrictLoadHook']
