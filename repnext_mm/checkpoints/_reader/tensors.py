"""Tensors as the pickles of torch describe them: a storage, and how it is read."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.storage import TypedStorage

from repnext_mm.checkpoints._reader.budget import Budget, dimensions
from repnext_mm.checkpoints._reader.errors import NotReadError
from repnext_mm.checkpoints._reader.objects import Standin, plain_objects, set_attributes

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
    known = {**plain_objects(), **{f'torch._utils.{name}': Standin(function) for name, function in functions.items()}}
    known['torch._tensor._rebuild_from_type_v2'] = Standin(_with_attributes)
    known |= {'torch.Tensor': Tensor, 'torch.nn.parameter.Parameter': nn.Parameter}
    for module in ('torch', 'torch.storage', 'torch.cuda'):
        known |= {f'{module}.{name}Storage': getattr(torch, dtype) for name, dtype in _DTYPES.items()}
    return known


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
