"""One reader for every weight file that mmengine is asked to load: safe, and strict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from repnext_mm.checkpoints import model_state, read_checkpoint


@contextmanager
def reading_safely(*, trust_pickle: bool = False) -> Iterator[None]:
    """Within, mmengine's loader reads files with ``read_checkpoint``, which executes nothing.

    mmengine itself falls back to unpickling, and looks for weights only under ``state_dict``.
    """

    def load_from_repnext_mm(filename: str, map_location: Any = None) -> dict[str, Any]:
        content: Mapping[str, Any] = read_checkpoint(filename, trust_pickle=trust_pickle)
        if 'state_dict' in content:
            return dict(content)
        return {'state_dict': model_state(content), 'meta': content.get('meta', {})}

    schemes = dict(CheckpointLoader._schemes)
    CheckpointLoader.register_scheme(['', 'http://', 'https://'], load_from_repnext_mm, force=True)
    try:
        yield
    finally:
        CheckpointLoader._schemes = schemes


def load_strictly(config: Config, *, without: Sequence[str] = ()) -> None:
    """Put StrictLoadHook into a config that lacks it.

    ``without`` are prefixes of keys in the file that the model to test does not have on purpose.
    """
    hooks = list(config.get('custom_hooks') or [])
    strict = next((h for h in hooks if isinstance(h, dict) and str(h.get('type')).endswith('StrictLoadHook')), None)
    if strict is None:
        strict = dict(type='StrictLoadHook')
        hooks.append(strict)
    if without:
        strict['reset'] = [*strict.get('reset', ()), *without]
    config.custom_hooks = hooks
