"""Unpickling tensors and the few plain objects of training checkpoints, and nothing that could run code."""

from __future__ import annotations

import argparse
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

# Everything beyond tensors that the known writers put into checkpoints: mmengine's log history (arrays and their
# scalars), its step schedules and, in the authors' and timm's files, the command line as a plain attribute holder.
_HISTORY_BUFFER = 'mmengine.logging.history_buffer.HistoryBuffer'
_NUMPY_ROOTS = ('numpy._core', 'numpy.core')  # the name changed with numpy 2; files hold either
_BUILTINS = ('builtins', '__builtin__')  # the latter in pickles of protocol 2, which torch writes
_SCALARS = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device)
_CLOSED = b''.join((
    pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX,
    pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.PERSID,
))  # fmt: skip


class RefusedGlobalError(ValueError):
    """A file needs a global that is not on the list; ``name`` is its full path."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = ascii(name)[1:-1][:200]  # it came from the file, and goes to a terminal


class Unpickler(pickle._Unpickler):
    """Calls only functions that it is given, by name, and sets state only of what those make.

    Python's own unpickler, since the one in C reserves as much memory as any opcode asks for. What else a hostile file
    could use is closed: other globals, calls of what was built before, attributes of classes, keys that take for ever
    to hash, calls that multiply the file's size.

    Args:
        file: what to read.
        size: of the whole pickle in bytes, or more; what calls are given may be little more.
        known: full names of globals, and what stands for them.
    """

    stack: list[Any]
    readline: Callable[[], bytes]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: Any, *, size: int, known: Mapping[str, Any]) -> None:
        super().__init__(file, encoding='utf-8')
        self.known = known
        self._called = {id(value) for value in known.values() if callable(value) and not isinstance(value, type)}
        self._to_copy = 4 * size + (1 << 20)  # calls copy, so that a small file could fill the memory

    def find_class(self, module: str, name: str) -> Any:
        full = f'{module}.{name}'
        if full not in self.known:
            raise RefusedGlobalError(full)
        return self.known[full]

    def load_global(self) -> None:
        lines = self.readline(), self.readline()
        if not lines[1].endswith(b'\n'):
            raise EOFError('it is cut short')
        self.append(self.find_class(*(line[:-1].decode() for line in lines)))

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if id(function) not in self._called or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError(f'it calls a {type(function).__name__}')
        self._to_copy -= sum(len(part) for part in arguments if isinstance(part, str | bytes | list | tuple | dict))
        if self._to_copy < 0:
            raise pickle.UnpicklingError('it unpacks to far more than its size')
        self.stack[-1] = function(*arguments)

    def load_newobj(self) -> None:
        arguments, kind = self.stack.pop(), self.stack[-1]
        if not _holds_attributes(kind) or arguments != ():
            raise pickle.UnpicklingError('it makes an object of an unknown kind')
        self.stack[-1] = kind.__new__(kind)

    def load_build(self) -> None:
        import numpy as np

        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, np.dtype):
            if state[1] not in ('<', '|', '='):
                raise pickle.UnpicklingError('it holds big-endian arrays')
        elif isinstance(made, np.ndarray):
            _, _, dtype, _, content = state
            if not isinstance(dtype, np.dtype) or not isinstance(content, bytes):
                raise pickle.UnpicklingError('it holds an array of objects')
            made.__setstate__(state)
        elif isinstance(made, OrderedDict) or _holds_attributes(type(made)):
            if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
                raise pickle.UnpicklingError(f'the state of a {type(made).__name__} is no dict of names')
            vars(made).update({key: value for key, value in state.items() if key != 'statistics_methods'})
            if isinstance(made, _history_buffer() or ()):
                made._set_default_statistics()  # as its __setstate__ does: they belong to the class
        else:
            raise pickle.UnpicklingError(f'it sets the state of a {type(made).__name__}')

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self) -> None:
        self._set(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._set(items)

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise pickle.UnpicklingError(f'it sets items of a {type(target).__name__}')
        target.update(zip(_hashable(items[::2]), items[1::2], strict=True))

    dispatch: ClassVar[dict[int, Any]] = {  # by opcode
        **{code: run for code, run in pickle._Unpickler.dispatch.items() if code not in _CLOSED},
        pickle.GLOBAL[0]: load_global, pickle.REDUCE[0]: load_reduce, pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build, pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
    }  # fmt: skip


class AttributeHolder:
    """What stands for a class of a file whose objects only hold attributes; subclasses may be made by files."""


@cache
def plain_objects() -> Mapping[str, Any]:
    """What stands for the globals that files may name beside their tensors."""
    import numpy as np

    core = import_module('numpy._core' if np.lib.NumpyVersion(np.__version__) >= '2.0.0b1' else 'numpy.core')

    def scalar(dtype: Any, content: Any) -> Any:
        if not isinstance(dtype, np.dtype) or not isinstance(content, bytes):
            raise pickle.UnpicklingError('it holds an object as a number')
        return core.multiarray.scalar(dtype, content)

    dtypes = {key: value for key, value in vars(torch).items() if isinstance(value, torch.dtype)}
    known: dict[str, Any] = {f'torch.{key}': dtype for key, dtype in dtypes.items()}
    known |= {
        'collections.OrderedDict': _ordered,
        'collections.Counter': lambda items: Counter(dict(items)),  # the milestones of a step schedule
        'argparse.Namespace': argparse.Namespace,
        '_codecs.encode': _encoded,
        'torch.Size': lambda sizes: torch.Size(sizes),
        'torch.device': lambda *parts: torch.device(*parts),
        'torch._utils._rebuild_parameter': _parameter,
        'torch._utils._rebuild_parameter_with_state': _parameter,
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': _dtype,
    }
    known |= {f'{root}.multiarray._reconstruct': lambda *_: np.empty(0, 'b') for root in _NUMPY_ROOTS}
    known |= {f'{root}.multiarray.scalar': scalar for root in _NUMPY_ROOTS}
    known |= {f'{module}.getattr': _history_method for module in _BUILTINS}
    known |= {f'{module}.set': lambda items: set(_hashable(items)) for module in _BUILTINS}
    history = _history_buffer()
    return known | ({} if history is None else {_HISTORY_BUFFER: history})


def is_allowed(name: str) -> bool:
    """Whether a global's full name is on the list or is a part of tensors."""
    if re.fullmatch(r'torch(\.storage|\.cuda)?\.\w+Storage|torch\._utils\._rebuild_tensor_v[23]', name):
        return True
    return name in plain_objects()


def _holds_attributes(kind: Any) -> bool:
    """Whether objects of a class may be made and given attributes."""
    own = (argparse.Namespace, AttributeHolder, _history_buffer())
    return isinstance(kind, type) and (kind in own or issubclass(kind, AttributeHolder))


@cache
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


def _hashable(keys: Iterable[Any]) -> list[Any]:
    """Keys that hash at once: of nested tuples, a file of a hundred bytes makes one that takes years."""
    import numpy as np

    keys = list(keys)
    for key in keys:
        for part in key if isinstance(key, tuple) else (key,):
            if not isinstance(part, (*_SCALARS, np.generic)):
                raise pickle.UnpicklingError(f'it holds a {type(part).__name__} as a key')
    return keys


def _ordered(items: Iterable[Any] = ()) -> OrderedDict[Any, Any]:
    pairs = [tuple(pair) for pair in items]
    _hashable(key for key, _ in pairs)
    return OrderedDict(pairs)


def _encoded(text: str, encoding: str) -> bytes:
    if encoding not in ('latin1', 'latin-1'):  # how protocol 2 writes bytes
        raise pickle.UnpicklingError('it encodes bytes in an unknown way')
    return text.encode('latin1')


def _dtype(code: Any, *_: Any) -> Any:
    import numpy as np

    if not isinstance(code, str) or not re.fullmatch(r'[biufcSU]\d{1,6}', code):  # numbers and strings; no objects
        raise pickle.UnpicklingError('it holds an array of objects')
    return np.dtype(code)


def _parameter(data: Tensor, requires_grad: bool, *_: Any) -> nn.Parameter:
    return nn.Parameter(data, bool(requires_grad))
