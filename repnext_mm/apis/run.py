"""Building a Runner from a checked config."""

from __future__ import annotations

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner


def build_runner(config: Config) -> Runner:
    """Build the Runner that the config names (``runner_type``), or the usual one."""
    return RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
