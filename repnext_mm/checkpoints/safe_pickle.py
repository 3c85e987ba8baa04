"""Unpickling tensors and the few plain objects of training checkpoints, and nothing that could run code."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

# Everything beyond tensors that the known writers put into checkpoints: mmengine's log history (arrays and their
# scalars), its step schedules and, in the authors' and timm's files, the command line as a plain attribute holder.
_HISTORY_BUFFER = 'mmengine.logging.history_buffer.HistoryBuffer'
_NUMPY = ('multiarray._reconstruct', 'multiarray.scalar')
_TENSOR_PARTS = {
    'collections.OrderedDict', 'torch._utils._rebuild_tensor_v2', 'torch._utils._rebuild_parameter', 'torch.Size',
    'torch.device', '_codecs.encode',
}  # fmt: skip
_NUMPY_ROOTS = ('numpy._core', 'numpy.core')  # the name changed with numpy 2; files hold either


class RefusedGlobalError(ValueError):
    """A file needs a global that is not on the list; ``name`` is its full path."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def load_safely(path: Path) -> Any:
    """The content of a file that ``torch.save`` wrote, tensors on the CPU.

    Raises:
        RefusedGlobalError: an object in it is neither a tensor nor on the list; nothing was executed.
        pickle.UnpicklingError, RuntimeError, EOFError, ...: the file is no such file, or it is damaged.
    """
    allowed = _allowed_globals()
    if hasattr(torch.serialization, 'safe_globals') and _accepts_renamed():
        pairs: list[Any] = [(value, name) for name, value in allowed.items()]
        try:
            with torch.serialization.safe_globals(pairs), warnings.catch_warnings():
                warnings.filterwarnings('ignore', 'Detected pickle protocol')  # judged by what it asks for
                return torch.load(path, map_location='cpu', weights_only=True)
        except pickle.UnpicklingError as error:
            refused = re.search(r'GLOBAL ([\w.]+)|callable_type[^\w]+([\w.]+)|class ([\w.]+)', str(error))
            if refused and 'nsupported' in str(error):
                raise RefusedGlobalError(next(group for group in refused.groups() if group)) from error
            raise
    return torch.load(path, map_location='cpu', pickle_module=_restricted(allowed), weights_only=False)


def _accepts_renamed() -> bool:
    """Whether this torch takes (object, name) pairs, as it does from 2.6 on."""
    major, minor = (int(part) for part in torch.__version__.split('.')[:2])
    return (major, minor) >= (2, 6)


def _allowed_globals() -> dict[str, Callable[..., Any]]:
    """Full names in pickles, and what is called for them."""
    import numpy as np

    allowed: dict[str, Callable[..., Any]] = {
        'argparse.Namespace': argparse.Namespace,
        'collections.Counter': Counter,  # the milestones of a step schedule
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': np.dtype,
        'builtins.getattr': _history_method,
        '__builtin__.getattr': _history_method,  # its name in pickles of protocol 2, which torch writes
    }
    core = import_module('numpy._core' if np.lib.NumpyVersion(np.__version__) >= '2.0.0b1' else 'numpy.core')
    for name in _NUMPY:
        function = getattr(core.multiarray, name.rpartition('.')[2])
        allowed |= {f'{root}.{name}': function for root in _NUMPY_ROOTS}
    for kind in (np.float32, np.float64, np.int32, np.int64, np.uint32, np.bool_):
        dtype = type(np.dtype(kind))
        allowed[f'{dtype.__module__}.{dtype.__qualname__}'] = dtype
    history = _history_buffer()
    if history is not None:
        allowed[_HISTORY_BUFFER] = history
    return allowed


def _history_buffer() -> Any:
    module, _, name = _HISTORY_BUFFER.rpartition('.')
    try:  # this layer does not import mmengine; where it is absent, its files cannot be resumed anyway
        return getattr(import_module(module), name)
    except ImportError:
        return None


def _history_method(owner: Any, name: Any) -> Any:
    """What stands for ``getattr`` in mmengine's files: the default statistics of its log history, nothing else."""
    if owner is not _history_buffer() or name not in ('min', 'max', 'current', 'mean'):
        raise RefusedGlobalError('builtins.getattr')
    return getattr(owner, name)


def is_allowed(name: str) -> bool:
    """Whether a global's full name is on the list or is a part of tensors."""
    return name in _allowed_globals() or _is_tensor_part(name)


def _is_tensor_part(name: str) -> bool:
    module, _, last = name.rpartition('.')
    if name in _TENSOR_PARTS or re.fullmatch(r'torch(\.storage|\.cuda)?\.\w+Storage', name):
        return True
    return module == 'torch' and isinstance(getattr(torch, last, None), torch.dtype)


def _restricted(allowed: dict[str, Callable[..., Any]]) -> Any:
    """A pickle module for torch's reader that knows the allowed globals and what tensors are made of."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            full = f'{module}.{name}'
            if full in allowed:
                return allowed[full]
            if _is_tensor_part(full):
                return super().find_class(module, name)
            raise RefusedGlobalError(full)

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    return SimpleNamespace(Unpickler=Unpickler, load=load, __name__='repnext_mm.checkpoints.safe_pickle')
