"""Adapters to mmengine's loops."""

from repnext_mm.hooks.checkpoint import AtomicCheckpointHook
from repnext_mm.hooks.compile_backbone import CompileBackboneHook
from repnext_mm.hooks.fuse_backbone import FuseBackboneHook
from repnext_mm.hooks.memory import ReturnMemoryHook
from repnext_mm.hooks.memory_format import MemoryFormatHook
from repnext_mm.hooks.seeding import SeededSampler, SeedStepsHook
from repnext_mm.hooks.strict_load import StrictLoadHook

__all__ = [
    'AtomicCheckpointHook',
    'CompileBackboneHook',
    'FuseBackboneHook',
    'MemoryFormatHook',
    'ReturnMemoryHook',
    'SeedStepsHook',
    'SeededSampler',
    'StrictLoadHook',
]
