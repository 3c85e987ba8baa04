"""Running the code of others and leaving no trace: random generators, and what modules and their classes hold."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import Logger
from typing import Any

import torch
from torch import Tensor, nn

_NOT_LOOKED_INTO = frozenset({'torch', *sys.stdlib_module_names})


@contextmanager
def generators_kept() -> Iterator[None]:
    """Within, random numbers may be drawn; afterwards, those of torch, numpy and Python are where they were."""
    numpy = sys.modules.get('numpy')
    python, own, arrays = random.getstate(), torch.get_rng_state(), numpy.random.get_state() if numpy else None
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        torch.set_rng_state(own)
        if numpy:
            numpy.random.set_state(arrays)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def same_random_state() -> Callable[[], bool]:
    """A question that is answered later: has nobody drawn a random number on the CPU since?"""
    numpy = sys.modules.get('numpy')

    def state() -> tuple[Any, ...]:
        parts = numpy.random.get_state() if numpy else ()
        arrays = [part.tolist() if hasattr(part, 'tolist') else part for part in parts]
        return random.getstate(), torch.get_rng_state(), arrays

    python, own, arrays = state()

    def unchanged() -> bool:
        now = state()
        return python == now[0] and torch.equal(own, now[1]) and arrays == now[2]

    return unchanged


@contextmanager
def state_kept(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Within, code may write into what a model and its classes hold; afterwards, all is as it was.

    What it yields brings that about earlier, as often as it is called.

    This covers what their attributes hold, however deep: lists, dicts, sets, deques, arrays, and tensors but for the
    weights of layers of PyTorch's own.
    """
    seen: dict[int, Any] = {}
    undo: list[Callable[[], None]] = []
    for module in model.modules():
        _keep(vars(module), undo, seen, own=not type(module).__module__.startswith('torch.nn'))
    for kind in {kind for module in model.modules() for kind in type(module).__mro__}:
        if kind.__module__.partition('.')[0] not in _NOT_LOOKED_INTO:
            undo.append(_attributes_of(kind, undo, seen))

    def restore() -> None:
        for step in reversed(undo):
            step()

    try:
        yield restore
    finally:
        restore()


def _attributes_of(kind: type, undo: list[Callable[[], None]], seen: dict[int, Any]) -> Callable[[], None]:
    before = dict(vars(kind))
    for name, value in before.items():
        if not name.startswith('__'):
            _keep(value, undo, seen)

    def restore() -> None:
        for name in vars(kind).keys() - before.keys():
            delattr(kind, name)
        for name, value in before.items():
            if vars(kind).get(name) is not value:
                setattr(kind, name, value)

    return restore


def _keep(value: Any, undo: list[Callable[[], None]], seen: dict[int, Any], *, own: bool = True) -> None:
    """Note how to give a value its content back."""
    if id(value) in seen or isinstance(value, nn.Module | Logger) or _is_of_a_library(value):
        return
    seen[id(value)] = value  # otherwise another object may get its id
    if isinstance(value, Tensor):
        if own and not value.is_meta and type(value) in (Tensor, nn.Parameter):
            undo.append(_content_of(value))
    elif isinstance(value, dict):
        undo.append(_entries_of(value, dict.items, dict.update))
        for item in list(value.values()):
            _keep(item, undo, seen, own=own)
    elif isinstance(value, set):
        undo.append(_entries_of(value, iter, set.update))
    elif isinstance(value, list | deque | tuple):
        if not isinstance(value, tuple):
            undo.append(_entries_of(value, iter, type(value).extend))
        for item in list(value):
            _keep(item, undo, seen, own=own)
    elif (numpy := sys.modules.get('numpy')) and isinstance(value, numpy.ndarray):
        content = value.copy()
        undo.append(lambda: numpy.copyto(value, content) if value.flags.writeable else None)
    elif type(getattr(value, '__dict__', None)) is dict and not isinstance(value, type) and not callable(value):
        _keep(vars(value), undo, seen, own=own)


def _is_of_a_library(value: Any) -> bool:
    """Whether a value is of a class of Python or PyTorch that is not a container or an array."""
    library = type(value).__module__.partition('.')[0] in _NOT_LOOKED_INTO
    return library and not isinstance(value, Tensor | dict | set | list | deque | tuple)


def _entries_of(holder: Any, listed: Callable[[Any], Any], added: Callable[[Any, Any], None]) -> Callable[[], None]:
    before = list(listed(holder))

    def restore() -> None:
        now = list(listed(holder))
        if len(now) != len(before) or not all(map(_is, now, before)):
            holder.clear()
            added(holder, before)

    return restore


def _is(first: Any, second: Any) -> bool:
    return first is second or (type(first) is tuple and len(first) == 2 and all(map(_is, first, second)))


def _content_of(tensor: Tensor) -> Callable[[], None]:
    content = tensor.detach().clone()

    def restore() -> None:
        # not written without need: autograd counts the writings of what it has seen
        if not _equal(tensor.detach(), content):
            with torch.no_grad():
                tensor.copy_(content)

    return restore


def _equal(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    return torch.equal(first, second) or bool(((first == second) | (first != first) & (second != second)).all())
