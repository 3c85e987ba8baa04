"""What the code of a class does with the parts of its instances, as far as its byte code tells: no source is needed."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from types import CodeType, FunctionType
from typing import NamedTuple, cast

from torch import nn

_LIBRARIES = frozenset({'torch', 'builtins', 'abc', 'mmengine', 'typing'})
_NONE_TESTS = ('POP_JUMP_IF_NONE', 'POP_JUMP_IF_NOT_NONE', 'POP_JUMP_FORWARD_IF_NONE', 'POP_JUMP_FORWARD_IF_NOT_NONE')

_SIZES = frozenset(
    {
        'in_channels',
        'out_channels',
        'in_features',
        'out_features',
        'num_features',
        'kernel_size',
        'stride',
        'padding',
        'dilation',
        'groups',
    }
)


class Names(NamedTuple):
    """Attribute names in a function."""

    called: frozenset[str]  # of the instance, called at once: self.NAME(...)
    looked_at: frozenset[str]  # of the instance, for their class by isinstance() or for a size: self.NAME.in_channels
    taken: frozenset[str]  # of the instance, for anything else, but to see whether they are None
    others: frozenset[str]  # of anything else, and all strings: getattr takes them
    looks_into_loops: bool  # something that a loop goes through is itself subscripted or gone through
    gives_constants: bool  # a part of the instance is called with a constant behind another argument
    calls_type: bool  # of anything but the instance


def reaches(kind: type[nn.Module], path: Sequence[str]) -> bool:
    """Whether the code of a class may use a part by itself that lies inside one of its children.

    Args:
        kind: the class.
        path: the names from an instance to the part.
    """
    first, *inner = path
    if not inner:
        return False  # its own, which it is free to use
    for _, function in _functions(cast(Hashable, kind)):
        names = _names(function.__code__)
        if any(name in names.others for name in inner if not name.isdecimal()):
            return True
        if len(inner) == 1 and first in names.taken:
            return True
        if len(inner) > 1 and inner[-1].isdecimal() and inner[-2].isdecimal() and names.looks_into_loops:
            return True
    return False


def may_give(kind: type[nn.Module], arguments: Iterable[str]) -> frozenset[str]:
    """Those of some optional arguments that the code of a class may give to what it calls."""
    given = frozenset[str]()
    for _, function in _functions(cast(Hashable, kind)):
        names = _names(function.__code__)
        if names.gives_constants:
            return frozenset(arguments)
        given |= names.others
    return given.intersection(arguments)


@lru_cache(maxsize=1024)
def calls_type(kind: type, method: str) -> bool:
    """Whether a method of a class, or one that it calls, asks for the ``type`` of anything but the instance."""
    functions = dict(reversed(_functions(cast(Hashable, kind))))  # the class comes before its bases
    seen, waiting = set[str](), [method]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in functions:
            continue
        seen.add(name)
        names = _names(functions[name].__code__)
        if names.calls_type:
            return True
        waiting += names.called
    return False


def methods_with(kind: type[nn.Module], firsts: frozenset[str], *, helpers: bool) -> Iterator[tuple[str, Names]]:
    """The methods of a class, other than ``forward``, that take an argument and use any of the children named.

    Args:
        kind: the class.
        firsts: names of children.
        helpers: also those that ``forward`` calls, which others hardly do.
    """
    found = dict(_methods(cast(Hashable, kind)))
    if not helpers:
        called, waiting = set[str](), [kind.forward]
        while waiting:
            new = _names(waiting.pop().__code__).called - called
            called |= new
            waiting += [found[name] for name in new & found.keys()]
        found = {name: function for name, function in found.items() if name not in called}
    for name, function in found.items():
        names = _names(function.__code__)
        if firsts & (names.called | names.looked_at | names.taken):
            yield name, names


@lru_cache(maxsize=1024)
def _methods(kind: type) -> tuple[tuple[str, FunctionType], ...]:
    found: dict[str, FunctionType] = {}
    for base in kind.__mro__:
        if base.__module__.partition('.')[0] in _LIBRARIES:
            continue
        for name, function in vars(base).items():
            if isinstance(function, FunctionType) and name not in found and not hasattr(nn.Module, name):
                found[name] = function
    return tuple((name, function) for name, function in found.items() if _needs_input(name, function))


def _needs_input(name: str, function: FunctionType) -> bool:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return not name.startswith('__') and any(p.default is p.empty and p.kind not in variadic for p in parameters)


@lru_cache(maxsize=1024)
def _functions(kind: type) -> tuple[tuple[str, FunctionType], ...]:
    return tuple(
        (name, function)
        for base in kind.__mro__
        if base.__module__.partition('.')[0] not in _LIBRARIES
        for name, function in vars(base).items()
        if isinstance(function, FunctionType) and name != '__init__'
    )


@lru_cache(maxsize=4096)
def _names(code: CodeType) -> Names:
    called: set[str] = set()
    looked_at: set[str] = set()
    taken: set[str] = set()
    others: set[str] = set()
    loops: set[str] = set()
    deep = constants = types = False
    own = code.co_varnames[0] if code.co_argcount else 'self'
    steps = list(dis.get_instructions(code))
    for index, step in enumerate(steps):
        before = steps[index - 1] if index else None
        after = steps[index + 1] if index + 1 < len(steps) else None
        if step.opname in ('LOAD_ATTR', 'LOAD_METHOD'):
            name = step.argval
            if before is None or not _is_load_of(before, own):
                others.add(name)
            elif step.opname == 'LOAD_METHOD' or '|self' in step.argrepr:  # since 3.12, LOAD_ATTR says it is called
                called.add(name)
            elif not (after and _tests_for_none(after)):
                (looked_at if _is_a_look(steps, index) else taken).add(name)
        elif step.opname.startswith('LOAD_CONST'):
            constants = constants or _is_last_argument(steps, index, own)
        elif step.opname in ('LOAD_GLOBAL', 'LOAD_NAME') and step.argval == 'type':
            of_itself = after and _is_load_of(after, own) and not steps[index + 2].opname.startswith('LOAD_ATTR')
            types = types or not of_itself
        elif step.opname.startswith('STORE_FAST') and _in_loop_head(steps, index):
            loops.update(step.argval if isinstance(step.argval, tuple) else [step.argval])
        elif step.opname in ('GET_ITER', 'BINARY_SUBSCR', 'BINARY_OP', 'BINARY_SLICE') and before is not None:
            if step.opname == 'BINARY_OP' and step.argrepr != '[]':
                continue
            back = steps[max(0, index - 3) : index]
            deep = deep or any(_is_load_of(other, name) for other in back for name in loops)
    for constant in code.co_consts:
        if isinstance(constant, str | tuple):  # names of keyword arguments are a tuple
            others.update([constant] if isinstance(constant, str) else filter(_is_name, constant))
        if isinstance(constant, CodeType):  # comprehensions and inner functions
            inner = _names(constant)
            called, taken, others = called | inner.called, taken | inner.taken, others | inner.others
            looked_at |= inner.looked_at
            deep, constants = deep or inner.looks_into_loops, constants or inner.gives_constants
            types = types or inner.calls_type
    sets = [frozenset(found) for found in (called, looked_at, taken, others)]
    return Names(sets[0], sets[1], sets[2], sets[3], deep, constants, types)


def _is_a_look(steps: list[dis.Instruction], index: int) -> bool:
    """Whether an attribute of the instance is loaded for its class or a size only."""
    after = steps[index + 1] if index + 1 < len(steps) else None
    if after is not None and after.opname == 'LOAD_ATTR' and after.argval in _SIZES:
        return True
    return index > 1 and steps[index - 2].opname == 'LOAD_GLOBAL' and steps[index - 2].argval == 'isinstance'


def _tests_for_none(step: dis.Instruction) -> bool:
    return step.opname in _NONE_TESTS or (step.opname == 'LOAD_CONST' and step.argval is None)


def _is_name(value: object) -> bool:
    return isinstance(value, str)


def _is_last_argument(steps: list[dis.Instruction], index: int, own: str) -> bool:
    """Whether a constant is the last of several arguments in ``self.PART(x, CONSTANT)``."""
    follows = steps[index + 1].opname if index + 1 < len(steps) else ''
    if follows not in ('CALL', 'CALL_METHOD', 'CALL_FUNCTION', 'PRECALL') or steps[index + 1].arg != 2:
        return False
    before = steps[max(0, index - 3) : index]
    return any(
        step.opname in ('LOAD_ATTR', 'LOAD_METHOD') and _is_load_of(steps[steps.index(step) - 1], own)
        for step in before
    )


def _is_load_of(step: dis.Instruction, name: str) -> bool:
    if 'LOAD_FAST' not in step.opname and step.opname != 'LOAD_DEREF':  # one step may store and load, since 3.13
        return False
    return step.argval == name or (isinstance(step.argval, tuple) and step.argval[-1] == name)


def _in_loop_head(steps: list[dis.Instruction], index: int) -> bool:
    while index and steps[index - 1].opname.startswith(('STORE_FAST', 'UNPACK_SEQUENCE')):
        index -= 1
    return bool(index) and steps[index - 1].opname == 'FOR_ITER'
