"""Our configs in mmengine's new style: classes and functions in the place of names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry, init_default_scope, root

from repnext_mm.models import type_name

REGISTRIES = [registry for registry in vars(root).values() if isinstance(registry, Registry)]


def write_new_style(source: Path, path: Path) -> Path:
    """The same config as a file that imports what it names."""
    config = Config.fromfile(source)
    init_default_scope(config.default_scope)
    made: dict[int, tuple[str, str]] = {}
    values = {key: value for key, value in config._cfg_dict.to_dict().items() if key != 'custom_imports'}
    lines = [f'{key} = {_text(value, made)}' for key, value in values.items()]
    imports = [f'from {alias[0]} import {alias[1]} as it_{number}' for number, alias in made.items()]
    path.write_text('\n'.join([*imports, '', *lines, '']))
    return path


def by_name(node: Any) -> Any:
    """A nested config with every type by its name, to compare two styles."""
    if isinstance(node, dict):
        return {key: type_name(value) if key == 'type' else by_name(value) for key, value in node.items()}
    return [by_name(value) for value in node] if isinstance(node, list | tuple) else node


def _text(node: Any, made: dict[int, tuple[str, str]]) -> str:
    if isinstance(node, dict):
        texts = {key: _type(value, made) if key == 'type' else _text(value, made) for key, value in node.items()}
        return '{' + ', '.join(f'{key!r}: {text}' for key, text in texts.items()) + '}'
    if isinstance(node, list | tuple):
        inner = ', '.join(_text(value, made) for value in node)
        return f'[{inner}]' if isinstance(node, list) else f'({inner},)' if node else '()'
    return repr(node)


def _type(name: str, made: dict[int, tuple[str, str]]) -> str:
    scope = DefaultScope.get_current_instance().scope_name
    for registry in REGISTRIES:
        with registry.switch_scope_and_registry(scope) as inner:
            kind = inner.get(name)
        if kind is not None:
            break
    else:
        return repr(name)  # of an operator of mmcv, which its library looks up by itself
    made[id(kind)] = (kind.__module__, kind.__qualname__)
    return f'it_{id(kind)}'
