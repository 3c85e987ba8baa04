"""Building a Runner from a checked config."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from repnext_mm.apis.config import building
from repnext_mm.errors import UserError


class NotBuiltError(UserError):
    """A config from which something cannot be built, in one sentence."""


def earlier_files(folder: str | Path, pattern: str = '*') -> str:
    """A few names of what lies in a folder already, for a sentence about what may be replaced; '' if nothing does."""
    names = sorted(path.name for path in Path(folder).glob(pattern)) if Path(folder).is_dir() else []
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def build_runner(config: Config) -> Runner:
    """Build the Runner that the config names (``runner_type``), or the usual one.

    Raises:
        NotBuiltError: a library refuses a part of the config.
    """
    try:
        with building(config):
            return RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
    except UserError as error:
        raise NotBuiltError(' '.join(str(error).split())) from error
