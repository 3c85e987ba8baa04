"""Making a training config survive kills: whole checkpoints, and randomness that a restart repeats."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from repnext_mm.models import type_name


def keep_checkpoints_whole(config: Config) -> list[str]:
    """Put ``AtomicCheckpointHook`` in the place of mmengine's ``CheckpointHook``; returns lines for the log.

    It takes the same arguments. A subclass of somebody else's is left alone, and so is a config without the hook.
    """
    default = dict(config.get('default_hooks') or {})
    default.setdefault('checkpoint', dict(type='CheckpointHook'))  # mmengine's own, where a config names none
    found = 0
    for hook in [*default.values(), *(config.get('custom_hooks') or ())]:
        if isinstance(hook, dict) and _is_stock(hook.get('type')):
            hook['type'] = 'AtomicCheckpointHook'
            found += 1
    if not found:
        return []
    config.default_hooks = default
    return ['AtomicCheckpointHook saves in the place of CheckpointHook: a kill leaves a whole checkpoint.']


def repeat_randomness(config: Config) -> list[str]:
    """With a fixed seed, seed every step and every sample by its place; returns lines for the log."""
    if (config.get('randomness') or {}).get('seed') is None:
        return []
    hooks = list(config.get('custom_hooks') or [])
    if not any(isinstance(hook, dict) and type_name(hook.get('type')) == 'SeedStepsHook' for hook in hooks):
        config.custom_hooks = [*hooks, dict(type='SeedStepsHook')]
    loader = config.get('train_dataloader')
    sampler = loader.get('sampler') if isinstance(loader, dict) else None
    if isinstance(sampler, dict) and type_name(sampler.get('type')) != 'SeededSampler':
        config.train_dataloader.sampler = dict(type='SeededSampler', sampler=sampler)
    return ['The seed is fixed: every step and every sample is seeded by its place, so that a restart repeats it.']


def _is_stock(kind: Any) -> bool:
    """Whether this is mmengine's own hook, not somebody's of the same name."""
    made = HOOKS.get(kind) if isinstance(kind, str) and type_name(kind) == 'CheckpointHook' else kind
    return made is CheckpointHook
