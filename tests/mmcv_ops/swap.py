"""mmcv's own Python functions on another operator module, or on another device."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

from repnext_mm.mmcv_ops import operators, status
from tests.conftest import needs_gpu


def put_operators(ext: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all of mmcv.ops call ``ext``, until the monkeypatch is undone."""
    import mmcv.ops

    for found in pkgutil.iter_modules(mmcv.ops.__path__):
        module = importlib.import_module(f'mmcv.ops.{found.name}')
        if hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', ext)


class OnGpu:
    """Our operators for tensors of the CPU, computed on a GPU; what they write into tensors comes back too."""

    def __getattr__(self, operator: str) -> Callable[..., Any]:
        function = getattr(operators, operator)

        def call(*args: Any, **kwargs: Any) -> Any:
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            there = {id(value): value.detach().cuda() for value in given}
            result = function(
                *(there.get(id(value), value) for value in args),
                **{key: there.get(id(value), value) for key, value in kwargs.items()},
            )
            for value in given:
                now = there[id(value)].cpu()
                if value.shape == now.shape and not torch.equal(value, now):  # autograd counts what is written
                    value.detach().copy_(now)
            return _on_cpu(result)

        return call


def _on_cpu(result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return result.cpu()
    return type(result)(map(_on_cpu, result)) if isinstance(result, list | tuple) else result


EVERYWHERE = [pytest.param(operators, id='on a CPU'), pytest.param(OnGpu(), marks=needs_gpu, id='on a GPU')]
needs_compiled = pytest.mark.skipif(status().kind != 'compiled', reason='mmcv has no compiled operators here')
