"""What a ``forward`` does with its input, on every way through it: recorded by running it on values that stand for any.

A value answers as what it stands for (a tensor, a shape, a number), notes who reads it, and where code asks which of
several cases holds, all answers are tried, one run each. What cannot be answered makes the whole record unknown, also
where the code catches the error. Nothing is computed, and the layers themselves are never run.
"""

from __future__ import annotations

import dis
import inspect
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import CodeType, FrameType, FunctionType
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from repnext_mm.reparam.reached_by_code import calls_type
from repnext_mm.reparam.surgery import skeleton
from repnext_mm.reparam.unchanged import same_random_state, state_kept

MAX_WAYS = 32
"""Ways through a ``forward`` that are tried; one with more is unknown."""

MAX_QUESTIONS = 128  # on one way: it may go round in circles


class Node:
    """One step: an input, the call of a layer or of a function or method, or the reading of an attribute."""

    def __init__(self, op: str, target: Any = None, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None):
        self.op = op  # 'input', 'layer', 'function', 'method', 'attribute'
        self.target = target  # the layer, the function, or the name
        self.args = args  # nodes where values were
        self.kwargs = kwargs or {}
        self.readers: list[Node] = []
        self.outlives = False  # the value was returned, or put where others find it


class Way:
    """One way through a ``forward``."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.read: dict[nn.Module, set[str]] = {}  # attributes of layers that code read


def ways_through(
    scope: nn.Module,
    is_layer: Callable[[nn.Module], bool],
    *,
    method: str = 'forward',
    not_given: Collection[str] = (),
) -> tuple[Way, ...] | None:
    """All ways through a method of a module, with and without its optional arguments; None where they are unknown.

    Args:
        scope: the module, which is not changed (nor its class, nor the random generators).
        is_layer: modules inside that are not looked into.
        method: of the class. Of an instance, see ``plain_layers``.
        not_given: optional arguments that nobody gives.
    """
    function = inspect.getattr_static(type(scope), method, None)
    if not isinstance(function, FunctionType) or _takes_anything(function) or _asks_for_types(scope, is_layer, method):
        return None
    answers, ways = _Answers(), []
    with state_kept(scope) as restore, _nothing_watches():
        for _ in range(MAX_WAYS):
            run = _Run(answers, not_given)
            try:
                ways += run.twice_through(scope, function, is_layer)
            except _Unknown:
                return None
            finally:
                restore()
            if not answers.advance():
                return tuple(ways) or None
    return None


class _Unknown(BaseException):
    """Nobody knows what the code would do; code that catches every ``Exception`` does not catch this."""


class _NoSuchAttribute(AttributeError):
    """An input may have an attribute, or may not."""


class _Answers:
    """Answers to the questions of a run: the first of each at first, and in the end all combinations."""

    def __init__(self) -> None:
        self._given: list[list[int]] = []  # which answer, of how many
        self._asked = 0

    def ask(self, count: int) -> int:
        if self._asked == MAX_QUESTIONS:
            raise _Unknown
        if self._asked == len(self._given):
            self._given.append([0, count])
        self._asked += 1
        return self._given[self._asked - 1][0]

    def repeat(self) -> None:
        """Answer the same again, and go on from there."""
        self._asked = 0

    def advance(self) -> bool:
        self._asked = 0
        while self._given and self._given[-1][0] + 1 == self._given[-1][1]:
            self._given.pop()
        if self._given:
            self._given[-1][0] += 1
        return bool(self._given)


class _Run:
    def __init__(self, answers: _Answers, not_given: Collection[str]) -> None:
        self.way = Way()
        self.not_given = not_given
        self.unknown = ''
        self.ask = answers.ask
        self.repeat = answers.repeat
        self._values: list[tuple[Node, weakref.ref[Value]]] = []
        self._modes: dict[str, bool] = {}

    def twice_through(
        self, scope: nn.Module, function: FunctionType, is_layer: Callable[[nn.Module], bool]
    ) -> list[Way]:
        """Two calls, the second with what the first has left: code may count its calls, and do something only once."""

        def stand_in(module: nn.Module) -> Layer | None:
            return Layer(self, module) if module is not scope and is_layer(module) else None

        clone, clones = skeleton(scope, instead=stand_in)
        before = same_random_state()
        results = []
        try:
            with self._modes_asked(), warnings.catch_warnings():
                warnings.simplefilter('ignore')
                for call in range(2):
                    args, kwargs = self._arguments(function)
                    results.append(function(clone, *args, **kwargs))
                    if not call:
                        self.repeat()
                        self._forget_what_changed(clones)
        except _Unknown:
            raise
        except Exception as error:  # whatever code raises when its input is not what it expects
            if self.unknown or results or not (isinstance(error, _NoSuchAttribute) or _raised_on_purpose(error)):
                raise _Unknown from error
            return []  # this way ends in an error of its own
        if self.unknown or not before():  # caught by the code; or chance may decide
            raise _Unknown
        del args, kwargs
        for node, value in self._values:
            node.outlives = value() is not None
        del results, clone, clones
        return [self.way]

    def _forget_what_changed(self, clones: Mapping[nn.Module, nn.Module]) -> None:
        """Let numbers, flags and names that a call has changed be anything in the next."""
        for module, clone in clones.items():
            if isinstance(clone, nn.Module) and clone is not module:
                for name, value in list(vars(clone).items()):
                    if isinstance(value, str | int | float) and value != vars(module).get(name):
                        vars(clone)[name] = Value(self, Node('attribute', name), 'number')

    def value(self, node: Node, kind: str) -> Value:
        self.way.nodes.append(node)
        for source in _nodes((node.args, node.kwargs)):
            source.readers.append(node)
        value = Value(self, node, kind)
        self._values.append((node, weakref.ref(value)))
        return value

    def call(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kind: str) -> Value:
        return self.value(Node(op, target, _recorded(args), _recorded(kwargs)), kind)

    def fail(self, why: str) -> Any:
        self.unknown = self.unknown or why
        raise _Unknown(why)

    def _arguments(self, function: FunctionType) -> tuple[list[Any], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        by_name = False
        for parameter in list(inspect.signature(function).parameters.values())[1:]:
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            if parameter.default is not parameter.empty and (parameter.name in self.not_given or not self.ask(2)):
                by_name = True
                continue
            value = self.value(Node('input', parameter.name), 'any')
            if by_name or parameter.kind is parameter.KEYWORD_ONLY:
                kwargs[parameter.name] = value
            else:
                args.append(value)
        return args, kwargs

    @contextmanager
    def _modes_asked(self) -> Iterator[None]:
        """Within, code that asks whether gradients are recorded and the like gets all answers, one run each."""
        thread = threading.get_ident()

        def asked(name: str, real: Callable[..., bool]) -> Callable[..., bool]:
            def answer(*args: Any) -> bool:
                if threading.get_ident() != thread or _is_torch(sys._getframe(1)):
                    return real(*args)
                if name not in self._modes:
                    self._modes[name] = bool(self.ask(2))
                return self._modes[name]

            return answer

        with ExitStack() as stack:
            for module, name in _MODES:
                holder = sys.modules.get(module)
                if real := getattr(holder, name, None):
                    setattr(holder, name, asked(name, real))
                    stack.callback(setattr, holder, name, real)
            yield


class Value:
    """Stands for whatever an argument may be, and for what becomes of it."""

    def __init__(self, run: _Run, node: Node, kind: str) -> None:
        self._run, self._node, self._kind = run, node, kind

    @classmethod
    def __torch_function__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = next(_values((args, kwargs or {})))
        kind = 'any' if getattr(function, '__name__', '') in _SEVERAL else 'tensor'
        return value._run.call('function', function, args, kwargs or {}, kind)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        frame = sys._getframe(1)
        if frame.f_code.co_name == 'is_tensor' and frame.f_back:
            frame = frame.f_back
        if _is_torch(frame):
            return Value
        if self._kind == 'any':
            self._kind = _KINDS[self._run.ask(len(_KINDS))]
        return _CLASSES[self._kind]

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') and name not in ('__len__',):
            raise AttributeError(name)
        if not hasattr(torch.Tensor, name) and (self._kind == 'tensor' or not self._run.ask(2)):
            raise _NoSuchAttribute(f'a value that may be a tensor has no attribute {name!r}')
        if name in _SHAPES:
            return Value(self._run, Node('attribute', name), 'size' if name == 'shape' else 'number')
        if name in _SHAPE_METHODS:
            return _ShapeMethod(self._run, name)
        return Attribute(self._run, self._node, name)

    def __getitem__(self, index: Any) -> Value:
        kind = {'size': 'size' if isinstance(index, slice) else 'number', 'tensor': 'tensor'}.get(self._kind, 'any')
        if self._kind == 'size':
            return Value(self._run, Node('attribute', 'item'), kind)
        return self._run.call('method', '__getitem__', (self, index), {}, kind)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._run.call('method', '__setitem__', (self, index, value), {}, 'any')

    def __bool__(self) -> bool:
        return bool(self._run.ask(2))

    def __iter__(self) -> Iterator[Value]:
        count = _unpacked(sys._getframe(1))
        if count is None:
            return self._run.fail('its length is not known')
        return iter([self[index] for index in range(count)])

    def __contains__(self, item: Any) -> bool:
        return bool(self._run.ask(2))

    def __copy__(self) -> Value:
        return self._run.call('method', '__copy__', (self,), {}, self._kind)

    def __deepcopy__(self, _: Any) -> Value:
        return self.__copy__()

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f'<any {self._kind}>'

    def __format__(self, _: str) -> str:
        return repr(self)


class Attribute(Value):
    """An attribute of a value, which may be a method."""

    def __init__(self, run: _Run, source: Node, name: str) -> None:
        super().__init__(run, Node('attribute', name, (source,)), 'any')
        self._source, self._name = source, name
        run.way.nodes.append(self._node)
        source.readers.append(self._node)

    def __call__(self, *args: Any, **kwargs: Any) -> Value:
        node = Node('method', self._name, (self._source, *_recorded(args)), _recorded(kwargs))
        return self._run.value(node, 'any' if self._name in _SEVERAL else 'tensor')


class _ShapeMethod:
    """``x.size()``, ``x.dim()`` and the like: what they return is not changed by folding."""

    def __init__(self, run: _Run, name: str) -> None:
        self._run, self._name = run, name

    def __call__(self, *args: Any, **kwargs: Any) -> Value:
        kind = 'size' if self._name == 'size' and not args and not kwargs else 'number'
        return Value(self._run, Node('attribute', self._name), kind)


class Layer:
    """Stands for a layer: notes its calls, and the attributes that other code reads."""

    def __init__(self, run: _Run, module: nn.Module) -> None:
        vars(self).update(_run=run, _module=module)

    def __call__(self, *args: Any, **kwargs: Any) -> Value:
        return self._run.call('layer', self._module, args, kwargs, 'tensor' if _one_tensor(self._module) else 'any')

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(self._module, name):
            self._read(name)
        vars(self)[name] = value

    def __delattr__(self, name: str) -> None:
        self._read(name)

    @property
    def forward(self) -> Layer:
        return self

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        if not _is_torch(sys._getframe(1)):
            self._read('__class__')
        return type(self._module)

    def _read(self, name: str) -> None:
        self._run.way.read.setdefault(self._module, set()).add(name)

    def __getattr__(self, name: str) -> Any:
        if not hasattr(self._module, name):
            raise AttributeError(f'{type(self._module).__name__!r} object has no attribute {name!r}')
        self._read(name)
        return getattr(self._module, name)

    def __getitem__(self, index: Any) -> Any:
        return self._run.fail('its parts are not looked into')

    def __iter__(self) -> Iterator[Any]:
        return self._run.fail('its parts are not looked into')

    def __len__(self) -> int:
        self._read('__len__')
        return len(self._module)  # type: ignore[arg-type]

    def __hash__(self) -> int:
        return id(self)


_MODES = (
    ('torch', 'is_grad_enabled'),
    ('torch', 'is_inference_mode_enabled'),
    ('torch', 'is_autocast_enabled'),
    ('torch.jit', 'is_tracing'),
    ('torch.onnx', 'is_in_onnx_export'),
)
_KINDS = ('tensor', 'tuple', 'list', 'dict')
_CLASSES = {'tensor': torch.Tensor, 'tuple': tuple, 'list': list, 'dict': dict, 'size': torch.Size, 'number': int}
_SHAPES = frozenset(
    {
        'shape',
        'ndim',
        'dtype',
        'device',
        'is_cuda',
        'requires_grad',
        'layout',
        'is_sparse',
        'is_mkldnn',
        'is_quantized',
        'is_meta',
        'is_nested',
    }
)
"""What folding does not change."""
_SHAPE_METHODS = frozenset({'size', 'dim', 'numel', 'is_floating_point', 'element_size', 'nelement', 'ndimension'})
_SEVERAL = frozenset(
    {
        'split',
        'chunk',
        'unbind',
        'tensor_split',
        'max',
        'min',
        'sort',
        'topk',
        'meshgrid',
        'hsplit',
        'vsplit',
        'dsplit',
        'split_with_sizes',
        'unsafe_chunk',
        'tolist',
        'item',
        'numpy',
        'items',
        'keys',
        'values',
        'get',
        'pop',
        'nonzero',
        'unique',
        'var_mean',
        'std_mean',
        'median',
        'stride',
    }
)
_OPERATORS = (
    'add',
    'sub',
    'mul',
    'truediv',
    'floordiv',
    'mod',
    'pow',
    'matmul',
    'and',
    'or',
    'xor',
    'lshift',
    'rshift',
)
_OTHER_OPERATORS = (
    'neg',
    'pos',
    'invert',
    'abs',
    'eq',
    'ne',
    'lt',
    'le',
    'gt',
    'ge',
    'round',
    'floor',
    'ceil',
    'trunc',
)
_UNANSWERABLE = ('len', 'int', 'float', 'index', 'complex', 'array', 'next', 'enter', 'exit', 'dlpack')


def _add_operators() -> None:
    def operator(name: str) -> Callable[..., Value]:
        def method(self: Value, *others: Any) -> Value:
            if self._kind in ('number', 'size') and not any(
                (_is_a(other, Value) and other._kind not in ('number', 'size')) or _is_a(other, torch.Tensor)
                for other in others
            ):
                return Value(self._run, Node('attribute', name), self._kind)  # sizes stay what they are
            return self._run.call('method', name, (self, *others), {}, 'tensor')

        return method

    def unanswerable(name: str) -> Callable[..., Any]:
        return lambda self, *_: self._run.fail(f'{name} of it is not known')

    names = [*_OTHER_OPERATORS, *(f'{prefix}{name}' for name in _OPERATORS for prefix in ('', 'r', 'i'))]
    for name in names:
        setattr(Value, f'__{name}__', operator(f'__{name}__'))
    for name in _UNANSWERABLE:
        setattr(Value, f'__{name}__', unanswerable(f'__{name}__'))


_add_operators()


def _values(nested: Any) -> Iterator[Value]:
    if _is_a(nested, Value):
        yield nested
    elif _is_a(nested, (tuple, list)):
        for item in nested:
            yield from _values(item)
    elif _is_a(nested, dict):
        yield from _values(list(nested.values()))
    elif type(nested) is slice:
        yield from _values([nested.start, nested.stop, nested.step])


def _is_a(value: Any, kinds: type | tuple[type, ...]) -> bool:
    """``isinstance``, without asking a value what it stands for."""
    return issubclass(type(value), kinds)


def _recorded(nested: Any) -> Any:
    """The same arguments with nodes in the place of values."""
    if _is_a(nested, Value):
        return nested._node
    if _is_a(nested, dict):
        return {key: _recorded(item) for key, item in nested.items()}
    if _is_a(nested, (tuple, list)):
        return tuple(_recorded(item) for item in nested)
    if type(nested) is slice:
        return ('slice', *(_recorded(item) for item in (nested.start, nested.stop, nested.step)))
    return nested


def _nodes(nested: Any) -> Iterator[Node]:
    if _is_a(nested, Node):
        yield nested
    elif _is_a(nested, (tuple, list)):
        for item in nested:
            yield from _nodes(item)
    elif _is_a(nested, dict):
        for item in nested.values():
            yield from _nodes(item)


def _one_tensor(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd | nn.Linear | nn.modules.batchnorm._NormBase | nn.Identity)


def _is_torch(frame: FrameType) -> bool:
    """Whether PyTorch asks, or this package: they get an honest answer."""
    name = str(frame.f_globals.get('__name__', ''))
    return name.partition('.')[0] == 'torch' or name.startswith(__name__.rpartition('.')[0])


def _unpacked(frame: FrameType) -> int | None:
    """How many names stand on the left of ``a, b = value``, in a frame that runs this; None where it runs another."""
    code, at = frame.f_code.co_code, frame.f_lasti
    return code[at + 1] if dis.opname[code[at]] == 'UNPACK_SEQUENCE' else None


def _raised_on_purpose(error: BaseException) -> bool:
    """Whether an error comes from a ``raise`` or ``assert`` of the code, not from what it did with a value."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or _is_torch(trace.tb_frame):
        return False
    return dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == 'RAISE_VARARGS'


def _asks_for_types(scope: nn.Module, is_layer: Callable[[nn.Module], bool], method: str) -> bool:
    """Whether code in a scope calls ``type``, which says what a value is, not what it stands for."""
    found = [scope]
    while found:
        module = found.pop()
        if calls_type(cast(Hashable, type(module)), method if module is scope else 'forward'):
            return True
        found += [child for child in module.children() if not is_layer(child)]
    return False


def _takes_anything(function: FunctionType) -> bool:
    """Whether a function reads arguments of any number or name."""
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            return True
        if parameter.kind is parameter.VAR_KEYWORD and _loads(function.__code__, parameter.name):
            return True
    return False


def _loads(code: CodeType, name: str) -> bool:
    return any(
        step.opname.startswith('LOAD') and (step.argval == name or (type(step.argval) is tuple and name in step.argval))
        for step in dis.get_instructions(code)
    )


def optional_arguments(scope: nn.Module, method: str) -> frozenset[str]:
    """The arguments that a method of a module can be called without."""
    function = inspect.getattr_static(type(scope), method, None)
    if not isinstance(function, FunctionType):
        return frozenset()
    parameters = inspect.signature(function).parameters.values()
    return frozenset(parameter.name for parameter in parameters if parameter.default is not parameter.empty)


@contextmanager
def _nothing_watches() -> Iterator[None]:
    """Within, hooks of all modules are not called: they may keep what passes by, and it is nothing."""
    registries = [
        getattr(torch_module, name)
        for name in (
            '_global_forward_hooks',
            '_global_forward_pre_hooks',
            '_global_backward_hooks',
            '_global_backward_pre_hooks',
        )
    ]
    kept = [registry.copy() for registry in registries]
    for registry in registries:
        registry.clear()
    try:
        yield
    finally:
        for registry, hooks in zip(registries, kept, strict=True):
            registry.update(hooks)
