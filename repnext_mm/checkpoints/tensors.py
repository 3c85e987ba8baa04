"""Tensors as the pickles of torch describe them: a storage, and how it is read."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .safe_pickle import plain_objects

_DTYPES = {
    'Double': torch.float64, 'Float': torch.float32, 'Half': torch.float16, 'BFloat16': torch.bfloat16,
    'Long': torch.int64, 'Int': torch.int32, 'Short': torch.int16, 'Char': torch.int8, 'Byte': torch.uint8,
    'Bool': torch.bool, 'ComplexFloat': torch.complex64, 'ComplexDouble': torch.complex128, 'Untyped': torch.uint8,
}  # fmt: skip


class Storage(NamedTuple):
    """The numbers that tensors are made of."""

    content: torch.UntypedStorage
    dtype: torch.dtype


def known_globals() -> Mapping[str, Any]:
    """What stands for the globals of checkpoints, those of tensors included."""
    known = {**plain_objects(), 'torch._utils._rebuild_tensor_v2': _tensor}
    known['torch._utils._rebuild_tensor_v3'] = _tensor_of_dtype
    for module in ('torch', 'torch.storage', 'torch.cuda'):
        known |= {f'{module}.{name}Storage': dtype for name, dtype in _DTYPES.items()}
    return known


def described(reference: Any) -> tuple[torch.dtype, str, int]:
    """Type, name and size in bytes of the storage that a pickle refers to.

    Raises:
        pickle.UnpicklingError: it refers to something else.
    """
    kind, dtype, key, _, count, *_ = reference
    known = kind == 'storage' and isinstance(dtype, torch.dtype) and isinstance(key, str) and isinstance(count, int)
    if not known or count < 0:
        raise pickle.UnpicklingError('it refers to something that is no storage')
    return dtype, key, count * dtype.itemsize


def untyped(content: bytearray) -> torch.UntypedStorage:
    """A storage that shares a buffer's memory and never grows."""
    if not content:  # torch takes no empty buffer
        return torch.UntypedStorage(0)
    return torch.frombuffer(content, dtype=torch.uint8).untyped_storage()


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    return _tensor_of_dtype(storage, offset, size, stride, False, None, getattr(storage, 'dtype', None))


def _tensor_of_dtype(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError('it holds a tensor without numbers')
    if math.prod(size) * dtype.itemsize > storage.content.nbytes():  # by strides of 0 it could claim any size
        raise pickle.UnpicklingError('a tensor claims more numbers than the file holds')
    return torch.empty(0, dtype=dtype).set_(storage.content, offset, size, stride)
