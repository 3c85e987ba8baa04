"""Why a file is not read, and the one account of what reading it may cost. Damage is whatever else is raised."""

from __future__ import annotations

import argparse
import math
import pickle
import sys
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

FACTOR, ALLOWANCE = 64, 1 << 26
_MAX_DIMENSIONS = 64  # what numpy has, and the loops of torch
_MAX_KEY_DEPTH = 8  # hash() of nested tuples recurses in C
_MAX_DEPTH = 200  # deepcopy() and repr() recurse in Python
STEP = 64  # bytes that are copied in the time of a step of a loop in Python
_KEYS = (float, complex, bool, type(None), torch.dtype, torch.device)
_OPEN = (-1, -1)


class RefusedGlobalError(ValueError):
    """A file needs a global that is not on the list; ``name`` is its full path."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = ascii(name[:200])[1:-1][:200]  # it came from the file, and goes to a terminal


class NotReadError(ValueError):
    """A file that may be whole, but is of a kind that is not read; the words say which, and the way out."""


class AttributeHolder:
    """What stands for a class of a file whose objects only hold attributes."""


class Budget:
    """Bytes and steps that a file may ask for: in all 64 times its size, and 64 MiB.

    Everything that a file makes its reader copy, hash, name, store or build is paid here before it is done. So the cost
    of reading grows with the size of the file, whatever the file says.
    """

    def __init__(self, size: int) -> None:
        self.left = FACTOR * size + ALLOWANCE

    def spend(self, amount: int) -> None:
        """Pay for an amount of bytes.

        Raises:
            pickle.UnpicklingError: the file has asked for far more than its size.
        """
        self.left -= amount
        if self.left < 0:
            raise pickle.UnpicklingError('it unpacks to far more than its size')

    def spend_key(self, key: Any, held: int) -> None:
        """Pay for hashing a key, and for comparing it with those that a container holds.

        Hashes of text are salted; those of numbers and tuples are not, so that a file can make all of them collide.

        Raises:
            pickle.UnpicklingError: it cannot be a key, or costs too much.
        """
        waiting, length = [(key, 0)], 1
        while waiting:
            part, depth = waiting.pop()
            self.spend(STEP)
            if isinstance(part, str | bytes):
                self.spend(len(part))
                length += len(part) >> 3
            elif isinstance(part, int):
                length += part.bit_length() >> 6
            elif isinstance(part, tuple):
                self.spend(STEP * len(part))
                length += len(part)
                if depth == _MAX_KEY_DEPTH:
                    raise pickle.UnpicklingError('it holds a deeply nested tuple as a key')
                waiting.extend((inner, depth + 1) for inner in part)
            elif not isinstance(part, _KEYS) and not _is_numpy_number(part):
                raise pickle.UnpicklingError(f'it holds a {type(part).__name__} as a key')
        self.spend(length if isinstance(key, str | bytes) else length * (held + 1))

    def spend_array(self, size: Any, itemsize: int) -> tuple[int, ...]:
        """Pay for an array or tensor as if all of its elements were written out, rows without any too.

        Returns:
            The size, as numbers.

        Raises:
            pickle.UnpicklingError: it is not a size, or one that costs too much.
        """
        numbers = dimensions(size)
        self.spend(math.prod(max(1, number) for number in numbers) * max(1, itemsize))
        return numbers

    def spend_content(self, content: Any) -> None:
        """Pay for walking through all of a content, where what several parts hold counts each time.

        Whoever prints, converts or compares it does that.

        Raises:
            pickle.UnpicklingError, NotReadError: a few parts hold each other again and again.
        """
        done: dict[int, tuple[int, int]] = {}  # extent and depth of each container
        waiting = [(content, False)]
        while waiting:
            part, entered = waiting.pop()
            inner = _parts(part)
            if inner is None:
                done[id(part)] = _extent(part), 0
            elif entered:
                extent, depth = STEP, 0
                for held in inner:
                    extent, depth = extent + done[id(held)][0], max(depth, done[id(held)][1])
                done[id(part)] = extent, depth + 1
                if depth >= _MAX_DEPTH:
                    raise NotReadError(f'it is nested more than {_MAX_DEPTH} levels deep: save plainer content')
                if extent > self.left:
                    self.spend(extent)
            elif id(part) not in done:
                self.spend(STEP * len(inner))  # of this walk
                done[id(part)] = _OPEN
                waiting.append((part, True))
                waiting.extend((held, False) for held in inner)
            elif done[id(part)] == _OPEN:
                raise NotReadError('it holds an object that holds itself: save plainer content')


def dimensions(size: Any) -> tuple[int, ...]:
    """A size, or strides, as a tuple of numbers that a tensor can have.

    Raises:
        pickle.UnpicklingError: it is not one.
    """
    if not isinstance(size, tuple | list) or len(size) > _MAX_DIMENSIONS:
        raise pickle.UnpicklingError(f'it holds a tensor without a size, or of more than {_MAX_DIMENSIONS} dimensions')
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in size):
        raise pickle.UnpicklingError('it holds a tensor whose size is not made of numbers')
    return tuple(size)


def _parts(value: Any) -> Collection[Any] | None:
    """What a container holds; none of anything else."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values(), *getattr(value, '__dict__', {}).values()]
    if isinstance(value, list | tuple | set):
        return value
    if isinstance(value, argparse.Namespace | AttributeHolder):
        return vars(value).values()
    return None


def _extent(value: Any) -> int:
    """About the bytes that a value takes when it is written out."""
    if isinstance(value, str | bytes | bytearray):
        return STEP + len(value)
    if isinstance(value, Tensor):
        plain = value.layout is torch.strided and not value.is_meta and not value.is_nested
        return STEP + (_elements(value.shape) * value.element_size() if plain else 0)
    if isinstance(value, int):
        return STEP + (value.bit_length() >> 3)
    shape = getattr(value, 'shape', None)
    return STEP + (_elements(shape) * max(1, value.itemsize) if isinstance(shape, tuple) else 0)


def _elements(shape: Sequence[int]) -> int:
    return math.prod(max(1, number) for number in shape)


def _is_numpy_number(value: Any) -> bool:
    numpy = sys.modules.get('numpy')
    return numpy is not None and isinstance(value, numpy.number | numpy.bool_)
