"""What stands for the globals of checkpoints, in a short list: tensors, and what else the known writers save."""

from __future__ import annotations

import argparse
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.storage import TypedStorage

try:
    import numpy as np
except ModuleNotFoundError:  # torch alone: arrays in a file are then refused as any other class is
    np = None  # type: ignore[assignment]

from repnext_mm.checkpoints._reader.budget import (
    STEP,
    AttributeHolder,
    Budget,
    NotReadError,
    RefusedGlobalError,
    dimensions,
)

# Everything beyond tensors that the known writers put into checkpoints: mmengine's log history (arrays and their
# scalars), its step schedules and, in the authors' and timm's files, the command line as a plain attribute holder.
_HISTORY_BUFFER = 'mmengine.logging.history_buffer.HistoryBuffer'
_NUMPY_ROOTS = ('numpy._core', 'numpy.core')  # the name changed with numpy 2; files hold either
_BUILTINS = ('builtins', '__builtin__')  # the latter in pickles of protocol 2, which torch writes
_DTYPES = {
    'Double': 'float64',
    'Float': 'float32',
    'Half': 'float16',
    'BFloat16': 'bfloat16',
    'Long': 'int64',
    'Int': 'int32',
    'Short': 'int16',
    'Char': 'int8',
    'Byte': 'uint8',
    'Bool': 'bool',
    'ComplexFloat': 'complex64',
    'ComplexDouble': 'complex128',
    'QUInt8': 'quint8',
    'QInt8': 'qint8',
    'QInt32': 'qint32',
    'QUInt4x2': 'quint4x2',
    'QUInt2x4': 'quint2x4',
    'Untyped': 'uint8',
}
_QUANTIZED = 'it holds a quantized tensor: save its dequantize()'
_TENSOR = 1024  # bytes that a tensor of any size takes, and making it


class Standin:
    """A function of ours that files call by the name of another; it is given the budget, then what the file gives."""

    __slots__ = ('function',)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


@cache
def known_globals(*, swapped: bool = False) -> Mapping[str, Any]:
    """What stands for the globals of checkpoints, those of tensors included.

    Args:
        swapped: the file was written on a machine of the other byte order.
    """
    functions: dict[str, Callable[..., Any]] = {
        '_rebuild_tensor': _tensor,
        '_rebuild_tensor_v2': _tensor,
        '_rebuild_tensor_v3': _tensor_of_dtype,
        '_rebuild_parameter': _parameter,
        '_rebuild_parameter_with_state': _parameter,
        '_rebuild_qtensor': _refused(_QUANTIZED),
        '_rebuild_sparse_tensor': _refused('it holds a sparse tensor: save its to_dense()'),
        '_rebuild_nested_tensor': _refused('it holds a nested tensor: save its unbind()'),
        '_rebuild_meta_tensor_no_storage': _without_numbers,
        '_rebuild_xla_tensor': _from_device,
        '_rebuild_device_tensor_from_numpy': _from_device,
        '_rebuild_device_tensor_from_cpu_tensor': _from_device,
    }
    if swapped:
        functions['_rebuild_tensor_v3'] = _tensor_of_bytes
    known = {**_plain_objects(), **{f'torch._utils.{name}': Standin(function) for name, function in functions.items()}}
    known['torch._tensor._rebuild_from_type_v2'] = Standin(_with_attributes)
    known |= {'torch.Tensor': Tensor, 'torch.nn.parameter.Parameter': nn.Parameter}
    for module in ('torch', 'torch.storage', 'torch.cuda'):
        known |= {f'{module}.{name}Storage': getattr(torch, dtype) for name, dtype in _DTYPES.items()}
    return known


@cache
def _plain_objects() -> Mapping[str, Any]:
    """What stands for the globals that files may name beside their tensors."""
    known: dict[str, Any] = {f'torch.{key}': value for key, value in vars(torch).items() if _is_constant(value)}
    functions: dict[str, Callable[..., Any]] = {
        'collections.OrderedDict': _ordered,
        'collections.Counter': _counter,  # the milestones of a step schedule
        '_codecs.encode': _encoded,
        'torch.Size': _size,
        'torch.device': _device,
        'torch.serialization._get_layout': _layout,
    }
    for module in _BUILTINS:
        functions |= {
            f'{module}.getattr': history_method,
            f'{module}.set': _set,
            f'{module}.bytes': _bytes,
            f'{module}.bytearray': _bytearray,
            f'{module}.complex': _complex,
        }
    for root in _NUMPY_ROOTS if np is not None else ():
        functions |= {
            f'{root}.multiarray._reconstruct': _empty_array,
            f'{root}.multiarray.scalar': _number,
            f'{root}.numeric._frombuffer': _array,
            'numpy.dtype': _dtype,
        }
    known |= {name: Standin(function) for name, function in functions.items()}
    known['argparse.Namespace'] = argparse.Namespace
    if np is not None:
        known['numpy.ndarray'] = np.ndarray
    history = _history_buffer()
    return known | ({} if history is None else {_HISTORY_BUFFER: history})


def holds_attributes(kind: Any) -> bool:
    """Whether objects of a class may be made and given attributes."""
    return isinstance(kind, type) and kind in (argparse.Namespace, AttributeHolder, _history_buffer())


def set_state(budget: Budget, made: Any, state: Any) -> None:
    """Give an object the state that a file has for it.

    Raises:
        pickle.UnpicklingError: it is not a state of such an object.
    """
    if np is not None and isinstance(made, np.dtype):
        _set_byte_order(made, state)
    elif np is not None and type(made) is np.ndarray:
        _fill_array(budget, made, state)
    elif type(made) is OrderedDict or holds_attributes(type(made)):
        set_attributes(budget, made, state)
    else:
        raise pickle.UnpicklingError(f'it sets the state of a {type(made).__name__}')


def set_attributes(budget: Budget, made: Any, state: Any) -> None:
    """Give an object attributes, never in the place of what its class has.

    Raises:
        pickle.UnpicklingError: they are not names, or names that the class has.
    """
    kind = type(made)
    if type(state) is not dict or not all(type(name) is str for name in state):
        raise pickle.UnpicklingError(f'the state of a {kind.__name__} is not a dict of names')
    budget.spend(STEP * len(state))
    history = kind is _history_buffer()
    for name, value in state.items():
        if history and name == 'statistics_methods':
            continue  # they belong to the class
        if hasattr(kind, name):
            raise pickle.UnpicklingError(f'it replaces {name[:100]!a} of a {kind.__name__}')
        if kind is OrderedDict and name == '_metadata':
            value = _versions(budget, value)
        vars(made)[name] = value
    if history:
        _check_history(made)
        made._set_default_statistics()  # as its __setstate__ does


def history_method(_: Budget, owner: Any, name: Any) -> Any:
    """What stands for ``getattr`` in mmengine's files: the default statistics of its log history, nothing else."""
    if owner is not _history_buffer() or name not in ('min', 'max', 'current', 'mean'):
        raise RefusedGlobalError('builtins.getattr')
    return getattr(owner, name)


@cache
def _history_buffer() -> Any:
    module, _, name = _HISTORY_BUFFER.rpartition('.')
    try:  # this layer does not import mmengine; where it is absent, its files cannot be resumed anyway
        return getattr(import_module(module), name)
    except ImportError:
        return None


def _check_history(made: Any) -> None:
    state = vars(made)
    logged, counts = state.get('_log_history'), state.get('_count_history')
    both = type(logged) is np.ndarray and type(counts) is np.ndarray and logged.shape == counts.shape
    if not both or type(state.get('max_length')) is not int:
        raise pickle.UnpicklingError('it holds a log history that is not two arrays of one length')


def _versions(budget: Budget, value: Any) -> Any:
    """A copy of the versions of modules that torch notes beside their weights: whoever loads those relies on them."""
    if not isinstance(value, dict):
        raise pickle.UnpicklingError('it holds versions of modules that are not a dict')
    copied: OrderedDict[str, dict[str, Any]] = OrderedDict()
    for name, entry in value.items():
        if type(name) is not str or type(entry) is not dict or type(entry.get('version', 1)) not in (int, type(None)):
            raise pickle.UnpicklingError('it holds versions of modules that are not numbers')
        budget.spend(STEP * (4 + len(entry)) + len(name))
        copied[name] = dict(entry)
    return copied


def _is_constant(value: Any) -> bool:
    return isinstance(value, torch.dtype | torch.qscheme)


def _ordered(budget: Budget, items: Any = ()) -> OrderedDict[Any, Any]:
    made: OrderedDict[Any, Any] = OrderedDict()
    if type(items) not in (tuple, list):
        raise pickle.UnpicklingError('it orders items that are not a list')
    for pair in items:
        budget.spend(STEP)
        if type(pair) not in (tuple, list) or len(pair) != 2:
            raise pickle.UnpicklingError('it orders items that are not pairs')
        budget.spend_key(pair[0], len(made))
        made[pair[0]] = pair[1]
    return made


def _counter(budget: Budget, items: Any = ()) -> Counter[Any]:
    made: Counter[Any] = Counter()
    if items != () and type(items) is not dict:
        raise pickle.UnpicklingError('it counts items that are not a dict')
    for key, value in dict(items).items():
        budget.spend_key(key, len(made))
        made[key] = value
    return made


def _set(budget: Budget, items: Any = ()) -> set[Any]:
    made: set[Any] = set()
    if type(items) not in (tuple, list):
        raise pickle.UnpicklingError('it holds a set that is not made of a list')
    for item in items:
        budget.spend_key(item, len(made))
        made.add(item)
    return made


def _encoded(budget: Budget, text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding not in ('latin1', 'latin-1'):  # how protocol 2 writes bytes
        raise pickle.UnpicklingError('it encodes bytes in an unknown way')
    budget.spend(len(text))
    return text.encode('latin1')


def _bytes(_: Budget) -> bytes:
    return b''  # protocol 2 writes all others by an encoding


def _bytearray(budget: Budget, content: Any = b'', encoding: Any = None) -> bytearray:
    if encoding is not None:
        content = _encoded(budget, content, encoding)
    if type(content) is not bytes:
        raise pickle.UnpicklingError('it holds a byte array that is not made of bytes')
    budget.spend(len(content))
    return bytearray(content)


def _complex(_: Budget, real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise pickle.UnpicklingError('it holds a complex number that is not made of two')
    return complex(real, imaginary)


def _size(budget: Budget, numbers: Any = ()) -> torch.Size:
    if type(numbers) not in (tuple, list):
        raise pickle.UnpicklingError('it holds a size that is not made of numbers')
    budget.spend(STEP * len(numbers))
    return torch.Size(numbers)


def _device(budget: Budget, kind: Any, index: Any = None) -> torch.device:
    if type(kind) is not str or type(index) not in (int, type(None)):
        raise pickle.UnpicklingError('it holds a device without a name')
    budget.spend(len(kind))
    return torch.device(kind) if index is None else torch.device(kind, index)


def _layout(_: Budget, name: Any) -> torch.layout:
    found = getattr(torch, name.removeprefix('torch.'), None) if type(name) is str and len(name) < 100 else None
    if not isinstance(found, torch.layout):
        raise pickle.UnpicklingError('it holds a tensor of an unknown layout')
    return found


def _dtype(_: Budget, code: Any, *_options: Any) -> Any:
    if type(code) is not str or not re.fullmatch(r'[biufcSU]\d{1,6}', code):  # numbers and text
        shown = ascii(code[:20])[1:-1] if type(code) is str else type(code).__name__
        raise NotReadError(f"it holds an array of '{shown}', not of numbers or text: ask its author for plain tensors")
    return np.dtype(code, copy=True)  # its byte order may be set yet


def _set_byte_order(made: Any, state: Any) -> None:
    if type(state) is not tuple or not 8 <= len(state) <= 9 or state[2:5] != (None, None, None):
        raise pickle.UnpicklingError('it holds an array of objects')
    order = state[1]
    if order == '>' and made.kind in 'biufc':
        made.__setstate__((3, '>', None, None, None, -1, -1, 0))
    elif order == '>':
        raise NotReadError('it holds text of a big-endian machine: load and save it there, as plain tensors')
    elif order not in ('<', '|', '='):
        raise pickle.UnpicklingError('it holds an array of an unknown byte order')


def _number(budget: Budget, dtype: Any, content: Any) -> Any:
    if not isinstance(dtype, np.dtype) or type(content) is not bytes or len(content) != dtype.itemsize:
        raise pickle.UnpicklingError('it holds an object as a number')
    budget.spend(len(content))
    return np.frombuffer(content, dtype, 1)[0] if content else dtype.type()


def _empty_array(*_: Any) -> Any:
    return np.empty(0, 'b')


def _fill_array(budget: Budget, made: Any, state: Any) -> None:
    if type(state) is not tuple or len(state) != 5:
        raise pickle.UnpicklingError('it holds an array of an unknown kind')
    version, shape, dtype, by_columns, content = state
    if version != 1 or not isinstance(dtype, np.dtype) or dtype.hasobject or type(content) is not bytes:
        raise pickle.UnpicklingError('it holds an array of objects')
    made.__setstate__((1, budget.spend_array(shape, dtype.itemsize), dtype, bool(by_columns), content))


def _array(budget: Budget, content: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """An array of protocol 5."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject or type(content) not in (bytes, bytearray):
        raise pickle.UnpicklingError('it holds an array of objects')
    shape = budget.spend_array(shape, dtype.itemsize)
    return np.ndarray(shape, dtype, content, order='F' if order == 'F' else 'C').copy('K')


def typed(content: bytearray, dtype: torch.dtype) -> TypedStorage:
    """A storage that shares a buffer's memory and never grows."""
    raw = torch.frombuffer(content, dtype=torch.uint8).untyped_storage() if content else torch.UntypedStorage(0)
    return TypedStorage(wrap_storage=raw, dtype=dtype, _internal=True)


def retyped(storage: TypedStorage, dtype: torch.dtype) -> TypedStorage:
    """The same memory, as numbers of a type."""
    return TypedStorage(wrap_storage=storage._untyped_storage, dtype=dtype, _internal=True)


def _tensor(
    budget: Budget,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _grad: Any = False,
    _hooks: Any = None,
    marks: Any = None,
) -> Tensor:
    dtype = storage.dtype if isinstance(storage, TypedStorage) else None
    return _tensor_of_dtype(budget, storage, offset, size, stride, False, None, dtype, marks)


def _tensor_of_dtype(
    budget: Budget,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _grad: Any,
    _hooks: Any,
    dtype: Any,
    marks: Any = None,
) -> Tensor:
    if not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError('it holds a tensor without numbers')
    if re.match(r'torch\.qu?int', str(dtype)):
        raise NotReadError(_QUANTIZED)
    if re.fullmatch(r'torch\.(bits\w+|u?int[1-7])', str(dtype)):
        raise NotReadError(f'it holds numbers of type {dtype}, which torch stores only: ask its author for others')
    size, stride = _within(budget, storage, offset, size, stride, dtype.itemsize)
    tensor = torch.empty(0, dtype=dtype).set_(storage._untyped_storage, offset, size, stride)
    return _marked(tensor, marks) if marks else tensor


def _tensor_of_bytes(
    budget: Budget, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *marks: Any
) -> Tensor:
    if isinstance(dtype, torch.dtype) and dtype.itemsize > 1:  # its storage does not say which bytes belong together
        raise NotReadError(f'it holds {dtype} of a machine of the other byte order: load and save it there first')
    return _tensor_of_dtype(budget, storage, offset, size, stride, grad, hooks, dtype, *marks)


def _within(
    budget: Budget, storage: Any, offset: Any, size: Any, stride: Any, itemsize: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Size and strides, if every element lies inside the storage."""
    numbers, steps = budget.spend_array(size, itemsize), dimensions(stride)
    budget.spend(_TENSOR)
    if not isinstance(storage, TypedStorage) or type(offset) is not int or offset < 0 or len(numbers) != len(steps):
        raise pickle.UnpicklingError('it holds a tensor without numbers')
    count = offset
    if all(numbers):
        count += 1 + sum((number - 1) * step for number, step in zip(numbers, steps, strict=True))
    if count * itemsize > storage._untyped_storage.nbytes():
        raise pickle.UnpicklingError('a tensor claims more numbers than the file holds')
    return numbers, steps


def _marked(tensor: Tensor, marks: Any) -> Tensor:
    """The numbers that a conjugate or negative view stands for; torch notes that instead of changing them."""
    unknown = [name for name in marks if name not in ('conj', 'neg')] if type(marks) is dict else [type(marks).__name__]
    if unknown:
        raise NotReadError(f'it marks a tensor as {ascii(unknown[0])[:100]}, which is unknown: convert it with torch')
    if marks.get('conj'):
        if not tensor.is_complex():
            raise pickle.UnpicklingError('it marks real numbers as conjugate')
        tensor = tensor.conj().resolve_conj()
    return tensor.neg() if marks.get('neg') else tensor


def _parameter(budget: Budget, data: Any, requires_grad: Any, _hooks: Any = None, state: Any = None) -> nn.Parameter:
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError('it holds a parameter without numbers')
    budget.spend(_TENSOR)
    numeric = data.is_floating_point() or data.is_complex()
    made = nn.Parameter(data, bool(requires_grad) and numeric)
    _set_all(budget, made, state)
    return made


def _with_attributes(budget: Budget, function: Any, kind: Any, arguments: Any, state: Any) -> Tensor:
    if type(function) is not Standin or type(arguments) is not tuple or kind not in (Tensor, nn.Parameter):
        raise pickle.UnpicklingError('it holds a tensor of an unknown kind')
    budget.spend(8 * len(arguments))
    made = function.function(budget, *arguments)
    if not isinstance(made, Tensor):
        raise pickle.UnpicklingError('it holds a tensor without numbers')
    if kind is nn.Parameter and not isinstance(made, nn.Parameter):
        made = nn.Parameter(made, made.requires_grad)
    _set_all(budget, made, state)
    return made


def _set_all(budget: Budget, made: Tensor, state: Any) -> None:
    for part in state if type(state) is tuple and len(state) == 2 else (state,):
        if part is not None:
            set_attributes(budget, made, part)


def _refused(sentence: str) -> Callable[..., Any]:
    """What stands for tensors that no network here has: torch believes what they say of themselves."""

    def refuse(*_: Any) -> None:
        raise NotReadError(sentence)

    return refuse


def _without_numbers(budget: Budget, dtype: Any, size: Any, stride: Any, requires_grad: Any) -> Tensor:
    if not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError('it holds a tensor of an unknown type')
    budget.spend(_TENSOR)
    return torch.empty_strided(dimensions(size), dimensions(stride), dtype=dtype, device='meta')


def _from_device(budget: Budget, data: Any, dtype: Any, _device: Any, _grad: Any) -> Tensor:
    """What was copied to the CPU from a device that torch cannot save from (TPUs)."""
    data = data if isinstance(data, Tensor) else torch.from_numpy(data)
    if data.layout is not torch.strided or data.is_meta or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError('it holds a tensor without numbers')
    budget.spend(_TENSOR + data.numel() * max(dtype.itemsize, data.element_size()))
    return data.to(dtype)
