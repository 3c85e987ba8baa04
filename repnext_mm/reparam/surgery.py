"""Replacing modules inside a model without changing the model."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

Replacement = Callable[[str, nn.Module], nn.Module | None]


def replaced(model: nn.Module, replacement: Replacement) -> nn.Module:
    """A model in which ``replacement(name, module)`` stands for every module it is not None for.

    Returns ``model`` itself when nothing is replaced. Otherwise the modules on the way to a replacement are shallow
    copies; everything else is shared with ``model``. What is replaced is not searched further.
    """
    done: dict[int, nn.Module] = {}  # a module that is used twice stays one module

    def visit(module: nn.Module, name: str) -> nn.Module:
        if id(module) not in done:
            new = replacement(name, module)
            done[id(module)] = _rebuilt(module, name) if new is None else new
        return done[id(module)]

    def _rebuilt(module: nn.Module, name: str) -> nn.Module:
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


_CONTAINERS = tuple(key for key, value in vars(nn.Module()).items() if isinstance(value, dict | set))


def _shallow_copy(module: nn.Module) -> nn.Module:
    # copy.copy would share the registries (and run __setstate__, which DDP and others override)
    clone = module.__class__.__new__(module.__class__)
    clone.__dict__.update(module.__dict__)
    for key in _CONTAINERS:
        clone.__dict__[key] = clone.__dict__[key].copy()
    return clone
