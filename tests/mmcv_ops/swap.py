"""mmcv's own Python functions on another operator module."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest


def put_operators(ext: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all of mmcv.ops call ``ext``, until the monkeypatch is undone."""
    import mmcv.ops

    for found in pkgutil.iter_modules(mmcv.ops.__path__):
        module = importlib.import_module(f'mmcv.ops.{found.name}')
        if hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', ext)
