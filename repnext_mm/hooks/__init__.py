"""Adapters to mmengine's loops."""

from .fuse_backbone import FuseBackboneHook

__all__ = ['FuseBackboneHook']
