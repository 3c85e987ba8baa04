"""Adapters to mmengine's loops."""

from .atomic_checkpoint import AtomicCheckpointHook
from .fuse_backbone import FuseBackboneHook
from .newest_checkpoint import NoWholeCheckpointError
from .return_memory import ReturnMemoryHook
from .seeding import SeededSampler, SeedStepsHook
from .strict_load import StrictLoadHook
from .whole_checkpoints import CheckpointNotSavedError

__all__ = [
    'AtomicCheckpointHook',
    'CheckpointNotSavedError',
    'FuseBackboneHook',
    'NoWholeCheckpointError',
    'ReturnMemoryHook',
    'SeedStepsHook',
    'SeededSampler',
    'StrictLoadHook',
]
