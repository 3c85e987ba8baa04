"""Unpickling that calls only functions of ours, and pays for all that it builds."""

from __future__ import annotations

import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from struct import unpack
from typing import Any, ClassVar, NamedTuple

import torch

from repnext_mm.checkpoints._reader.budget import Budget, RefusedGlobalError
from repnext_mm.checkpoints._reader.objects import Standin, history_method, holds_attributes, set_state

_CALL = 512  # what an object takes, and making it
_CONTAINER = 64
_OPCODES = b''.join(
    (
        pickle.PROTO,
        pickle.FRAME,
        pickle.STOP,
        pickle.POP,
        pickle.POP_MARK,
        pickle.DUP,
        pickle.NONE,
        pickle.NEWTRUE,
        pickle.NEWFALSE,
        pickle.BININT,
        pickle.BININT1,
        pickle.BININT2,
        pickle.LONG1,
        pickle.LONG4,
        pickle.BINFLOAT,
        pickle.BINSTRING,
        pickle.SHORT_BINSTRING,
        pickle.BINUNICODE,
        pickle.SHORT_BINUNICODE,
        pickle.BINUNICODE8,
        pickle.BINBYTES,
        pickle.SHORT_BINBYTES,
        pickle.BINBYTES8,
        pickle.EMPTY_TUPLE,
        pickle.TUPLE,
        pickle.LIST,
        pickle.STACK_GLOBAL,
        pickle.BINPERSID,
        pickle.BINGET,
        pickle.LONG_BINGET,
        pickle.BINPUT,
    )
)
_PAID_OPCODES = {  # a byte in the file, and so much in memory
    pickle.MARK: _CONTAINER,
    pickle.EMPTY_LIST: _CONTAINER,
    pickle.EMPTY_DICT: _CONTAINER,
    pickle.EMPTY_SET: 256,
    pickle.TUPLE1: _CONTAINER,
    pickle.TUPLE2: _CONTAINER,
    pickle.TUPLE3: _CONTAINER,
    pickle.MEMOIZE: _CONTAINER,
    pickle.LONG_BINPUT: _CONTAINER,
}
_DICTS = (dict, OrderedDict, Counter)
_STOCK: Mapping[int, Callable[[Any], None]] = pickle._Unpickler.dispatch  # type: ignore[attr-defined]


class Unpickler(pickle._Unpickler):  # type: ignore[name-defined, misc]
    """Calls only stand-ins, and changes only what those and the file's own brackets make.

    Python's own unpickler, since the one in C reserves as much memory as any opcode asks for; of its opcodes, those of
    protocols 2 to 5 that need no class of the file's.

    Args:
        file: what to read.
        budget: what all of the file may cost.
        known: full names of globals, and what stands for them.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: Any, *, budget: Budget, known: Mapping[str, Any]) -> None:
        super().__init__(file, encoding='utf-8')
        self.budget = budget
        self.known = known

    def find_class(self, module: str, name: str) -> Any:
        self.budget.spend(_CONTAINER + len(module) + len(name))
        full = f'{module}.{name}'
        try:
            return self.known[full]
        except KeyError:
            raise RefusedGlobalError(full) from None

    def call(self, function: Any, arguments: Any) -> Any:
        if type(function) is not Standin or type(arguments) is not tuple:
            raise pickle.UnpicklingError(f'it calls a {type(function).__name__}')
        self.budget.spend(_CALL + 8 * len(arguments))
        return function.function(self.budget, *arguments)

    def make(self, kind: Any, arguments: Any) -> Any:
        if not holds_attributes(kind) or arguments != ():
            raise pickle.UnpicklingError('it makes an object of an unknown kind')
        self.budget.spend(_CALL)
        return kind.__new__(kind)

    def build(self, made: Any, state: Any) -> None:
        self.budget.spend(_CALL)
        set_state(self.budget, made, state)

    def extend(self, target: Any, values: list[Any]) -> None:
        if type(target) is not list:
            raise pickle.UnpicklingError(f'it appends to a {type(target).__name__}')
        target.extend(values)

    def add(self, target: Any, values: list[Any]) -> None:
        if type(target) is not set:
            raise pickle.UnpicklingError(f'it adds to a {type(target).__name__}')
        for value in values:
            self.budget.spend_key(value, len(target))
            target.add(value)

    def set(self, target: Any, items: list[Any]) -> None:
        if type(target) not in _DICTS:
            raise pickle.UnpicklingError(f'it sets items of a {type(target).__name__}')
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.budget.spend_key(key, len(target))
            target[key] = value  # by its type, whatever attributes it has

    def _unknown(self) -> None:
        raise pickle.UnpicklingError('it holds an instruction that torch does not write')

    def _global(self) -> None:
        self.append(self.find_class(self._line(), self._line()))

    def _line(self) -> str:
        line = self.readline()
        if not line.endswith(b'\n'):
            raise EOFError('it is cut short')
        return line[:-1].decode()

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.append(self.call(function, arguments))

    def _inst(self) -> None:
        function = self.find_class(self._line(), self._line())
        arguments = tuple(self.pop_mark())  # before the stack to append to is looked up
        self.append(self.call(function, arguments))

    def _obj(self) -> None:
        function, *arguments = self.pop_mark()
        self.append(self.call(function, tuple(arguments)))

    def _newobj(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        self.append(self.make(kind, arguments))

    def _newobj_ex(self) -> None:
        named, arguments, kind = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.append(self.make(kind, arguments if named == {} else named))

    def _build(self) -> None:
        state = self.stack.pop()
        self.build(self.stack[-1], state)

    def _bytearray(self) -> None:
        (length,) = unpack('<Q', self.read(8))
        content = bytearray(self.read(min(length, 1 << 62)))
        if len(content) != length:
            raise EOFError('it is cut short')
        self.append(content)

    def _append(self) -> None:
        value = self.stack.pop()
        self.extend(self.stack[-1], [value])

    def _appends(self) -> None:
        values = self.pop_mark()
        self.extend(self.stack[-1], values)

    def _additems(self) -> None:
        values = self.pop_mark()
        self.add(self.stack[-1], values)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set(self.stack[-1], [key, value])

    def _setitems(self) -> None:
        items = self.pop_mark()
        self.set(self.stack[-1], items)

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.set(self.stack[-1], items)

    dispatch: ClassVar[dict[int, Any]] = {  # by opcode
        **dict.fromkeys(range(256), _unknown),
        **{code: _STOCK[code] for code in _OPCODES},
        pickle.GLOBAL[0]: _global,
        pickle.REDUCE[0]: _reduce,
        pickle.INST[0]: _inst,
        pickle.OBJ[0]: _obj,
        pickle.NEWOBJ[0]: _newobj,
        pickle.NEWOBJ_EX[0]: _newobj_ex,
        pickle.BUILD[0]: _build,
        pickle.BYTEARRAY8[0]: _bytearray,
        pickle.APPEND[0]: _append,
        pickle.APPENDS[0]: _appends,
        pickle.ADDITEMS[0]: _additems,
        pickle.SETITEM[0]: _setitem,
        pickle.SETITEMS[0]: _setitems,
        pickle.DICT[0]: _dict,
    }


def _paid(code: bytes, cost: int) -> Callable[[Unpickler], None]:
    load = _STOCK[code[0]]

    def run(reader: Unpickler) -> None:
        reader.budget.spend(cost)
        load(reader)

    return run


Unpickler.dispatch.update({code[0]: _paid(code, cost) for code, cost in _PAID_OPCODES.items()})


class Described(NamedTuple):
    """A storage, as a pickle refers to it."""

    dtype: torch.dtype
    key: str
    size: int  # bytes


def described(budget: Budget, reference: Any) -> Described:
    """What a pickle says about a storage.

    Raises:
        pickle.UnpicklingError: it refers to something else.
    """
    if type(reference) is not tuple or len(reference) not in (5, 6):
        raise pickle.UnpicklingError('it refers to something that is not a storage')
    kind, dtype, key, _, count, *view = reference
    known = kind == 'storage' and isinstance(dtype, torch.dtype) and type(key) is str and type(count) is int
    if not known or count < 0 or view not in ([], [None]):
        raise pickle.UnpicklingError('it refers to something that is not a storage, or to a part of one')
    budget.spend(_CONTAINER + len(key))
    return Described(dtype, key, count * dtype.itemsize)


class Recorder(Unpickler):
    """Goes through a pickle step by step as the reader does, builds nothing, and notes what it asks for.

    Attributes:
        refused: full names of the globals that the reader refuses.
        storages: those that the pickle refers to, by their keys.
    """

    def __init__(self, file: Any, *, budget: Budget, known: Mapping[str, Any]) -> None:
        super().__init__(file, budget=budget, known=known)
        self.refused: list[str] = []
        self.storages: dict[str, Described] = {}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except RefusedGlobalError as error:
            self._note(error)
            return None

    def call(self, function: Any, arguments: Any) -> None:
        if type(function) is Standin and function.function is history_method:  # which names are asked for counts
            try:
                super().call(function, arguments)
            except RefusedGlobalError as error:
                self._note(error)

    def persistent_load(self, reference: Any) -> None:
        if self.refused:  # nobody reads on
            return
        found = described(self.budget, reference)
        first = self.storages.setdefault(found.key, found)
        if first.size < found.size:
            raise pickle.UnpicklingError(f'storage {found.key!a} has two sizes')

    def _note(self, error: RefusedGlobalError) -> None:
        self.budget.spend(_CALL + len(error.name))
        self.refused.append(error.name)

    def make(self, kind: Any, arguments: Any) -> None:
        """Nothing: the stack takes None for it, as for all that is called."""

    def build(self, made: Any, state: Any) -> None: ...

    def extend(self, target: Any, values: list[Any]) -> None: ...

    def add(self, target: Any, values: list[Any]) -> None: ...

    def set(self, target: Any, items: list[Any]) -> None: ...
