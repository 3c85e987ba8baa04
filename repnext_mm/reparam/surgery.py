"""Replacing modules inside a model without changing the model."""

from __future__ import annotations

import copy
import functools
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

Replacement = Callable[[str, nn.Module], nn.Module | None]


def replaced(model: nn.Module, replacement: Replacement, *, left: Mapping[nn.Module, str] | None = None) -> nn.Module:
    """A model in which ``replacement(name, module)`` stands for every module it is not None for.

    Returns ``model`` itself when nothing is replaced. Otherwise the modules on the way to a replacement are shallow
    copies; everything else is shared with ``model``. What is replaced is not searched further, nor is what
    is ``sealed``, or in ``left`` (see ``anchored``, which is asked by default): those are not replaced either.
    """
    stay = anchored(model) if left is None else left
    done: dict[int, nn.Module] = {}  # a module that is used twice stays one module

    def visit(module: nn.Module, name: str) -> nn.Module:
        if id(module) not in done:
            new = None if module in stay else replacement(name, module)
            done[id(module)] = _rebuilt(module, name) if new is None else new
        return done[id(module)]

    def _rebuilt(module: nn.Module, name: str) -> nn.Module:
        if sealed(module) or module in stay:
            return module
        children = {
            key: visit(child, f'{name}.{key}' if name else key)
            for key, child in module._modules.items()
            if child is not None
        }
        if all(new is module._modules[key] for key, new in children.items()):
            return module
        clone = _shallow_copy(module)
        clone._modules.update(children)
        return clone

    return visit(model, '')


def skeleton(
    model: nn.Module, *, instead: Callable[[nn.Module], Any] = lambda module: None
) -> tuple[nn.Module, dict[nn.Module, nn.Module]]:
    """A model of new modules that share every tensor with ``model``: what its ``forward`` sets stays out of ``model``.

    Args:
        model: the source.
        instead: gives what stands for a module, if that is not a new one.

    Returns:
        The new model, and the new module for every module of ``model``; one that is ``sealed`` stands for itself.
    """
    clones: dict[nn.Module, nn.Module] = {}

    def clone_of(module: nn.Module) -> nn.Module:
        if module not in clones:
            other = instead(module)
            clones[module] = other if other is not None else module if sealed(module) else _shallow_copy(module)
            if other is None and clones[module] is not module:
                for key, value in vars(module).items():
                    if key not in _CONTAINERS and isinstance(value, list | dict | set):  # it may collect there
                        vars(clones[module])[key] = copy.copy(value)
                children = module._modules.items()
                clones[module]._modules.update(
                    {key: None if child is None else clone_of(child) for key, child in children}
                )
        return clones[module]

    return clone_of(model), clones


def anchored(model: nn.Module) -> dict[nn.Module, str]:
    """The modules of a model of which a copy would go on running the old ones, and why.

    They are compiled in place, or something other than their place in the model refers to them: bound methods,
    closures, partial functions and lists that are kept as attributes or hooks.
    """
    names = {module: name for name, module in model.named_modules()}
    reasons: dict[nn.Module, str] = {}
    for module, name in names.items():
        if getattr(module, '_compiled_call_impl', None) is not None:
            reasons.setdefault(module, 'it was compiled in place')
        if sealed(module):
            continue
        for key, value in vars(module).items():
            if key in _CONTAINERS and key not in _HOOKS:
                continue
            for other in _referred_to(value):
                if other in names:
                    whose = f'{name}.{key}' if name else key
                    reasons.setdefault(other, f'{whose} refers to it, so that a copy would run the old one')
    return reasons


_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def _referred_to(value: Any) -> Iterator[nn.Module]:
    """The modules that a value leads to, short of what those hold themselves."""
    seen: dict[int, Any] = {}
    found = [value]
    while found:
        item = found.pop()
        if id(item) in seen or item is None or isinstance(item, _NOT_FOLLOWED):
            continue
        seen[id(item)] = item  # otherwise another object may get its id
        if isinstance(item, nn.Module):
            yield item
        elif isinstance(item, Mapping):
            found += [part for pair in item.items() for part in pair]
        elif isinstance(item, list | tuple | set | frozenset | deque):
            found += item
        elif isinstance(item, MethodType):
            found += [item.__self__, item.__func__]
        elif isinstance(item, FunctionType):
            found += [cell.cell_contents for cell in item.__closure__ or () if _is_filled(cell)]
            found += [*(item.__defaults__ or ()), *(item.__kwdefaults__ or {}).values()]
        elif isinstance(item, functools.partial):
            found += [item.func, item.args, item.keywords]
        elif isinstance(item, weakref.ref):
            found.append(item())
        elif type(item).__module__.partition('.')[0] != 'torch':
            found += [getattr(item, name, None) for kind in type(item).__mro__ for name in _slots(kind)]
            if type(getattr(item, '__dict__', None)) is dict:
                found.append(vars(item))


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get('__slots__', ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


_NOT_FOLLOWED = (str, bytes, int, float, complex, torch.Tensor, torch.dtype, torch.device, type)


def _is_filled(cell: CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # the only way to know
        return False
    return True


def sealed(module: nn.Module) -> bool:
    """Whether a module runs code that was compiled from its children, so that replacing them would change nothing."""
    return isinstance(module, torch.jit.ScriptModule) or type(module).__module__.startswith('torch._dynamo')


_CONTAINERS = tuple(key for key, value in vars(nn.Module()).items() if isinstance(value, dict | set))


def _shallow_copy(module: nn.Module) -> nn.Module:
    # copy.copy would share the registries (and run __setstate__, which DDP and others override); fx.GraphModule's own
    # __new__ would make a class without its forward
    clone = object.__new__(module.__class__)
    clone.__dict__.update(module.__dict__)
    for key in _CONTAINERS:
        clone.__dict__[key] = clone.__dict__[key].copy()
    return clone
