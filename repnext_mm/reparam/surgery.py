"""Replacing modules inside a model without changing the model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

Replacement = Callable[[str, nn.Module], nn.Module | None]


def replaced(model: nn.Module, replacement: Replacement) -> nn.Module:
    """A model in which ``replacement(name, module)`` stands for every module it is not None for.

    Returns ``model`` itself when nothing is replaced. Otherwise the modules on the way to a replacement are shallow
    copies; everything else is shared with ``model``. What is replaced is not searched further, nor is what
    is ``sealed``.
    """
    done: dict[int, nn.Module] = {}  # a module that is used twice stays one module

    def visit(module: nn.Module, name: str) -> nn.Module:
        if id(module) not in done:
            new = replacement(name, module)
            done[id(module)] = _rebuilt(module, name) if new is None else new
        return done[id(module)]

    def _rebuilt(module: nn.Module, name: str) -> nn.Module:
        if sealed(module):
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


def skeleton(model: nn.Module) -> tuple[nn.Module, dict[nn.Module, nn.Module]]:
    """A model of new modules that share every tensor with ``model``: what its ``forward`` sets stays out of ``model``.

    Returns:
        The new model, and the new module for every module of ``model``; one that is ``sealed`` stands for itself.
    """
    clones: dict[nn.Module, nn.Module] = {}

    def clone_of(module: nn.Module) -> nn.Module:
        if module not in clones:
            clones[module] = module if sealed(module) else _shallow_copy(module)
            if clones[module] is not module:
                for key, value in vars(module).items():
                    if isinstance(value, list | dict | set):  # it may collect there what passes by
                        vars(clones[module])[key] = copy.copy(value)
                children = module._modules.items()
                clones[module]._modules.update(
                    {key: None if child is None else clone_of(child) for key, child in children}
                )
        return clones[module]

    return clone_of(model), clones


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
