"""Making a training config survive kills: whole checkpoints, and randomness that a restart repeats."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook

_STOCK = ('CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook)


def keep_checkpoints_whole(config: Config) -> list[str]:
    """Put ``AtomicCheckpointHook`` in the place of mmengine's ``CheckpointHook``; returns lines for the log.

    It takes the same arguments. A subclass of somebody else's is left alone, and so is a config without the hook.
    """
    default = dict(config.get('default_hooks') or {})
    default.setdefault('checkpoint', dict(type='CheckpointHook'))  # mmengine's own, where a config names none
    found = 0
    for hook in [*default.values(), *(config.get('custom_hooks') or ())]:
        if isinstance(hook, dict) and hook.get('type') in _STOCK:
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
    if not any(isinstance(hook, dict) and _kind(hook) == 'SeedStepsHook' for hook in hooks):
        config.custom_hooks = [*hooks, dict(type='SeedStepsHook')]
    loader = config.get('train_dataloader')
    sampler = loader.get('sampler') if isinstance(loader, dict) else None
    if isinstance(sampler, dict) and _kind(sampler) != 'SeededSampler':
        config.train_dataloader.sampler = dict(type='SeededSampler', sampler=sampler)
    return ['The seed is fixed: every step and every sample is seeded by its place, so that a restart repeats it.']


def _kind(part: dict[str, Any]) -> str:
    kind = part.get('type')
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]
