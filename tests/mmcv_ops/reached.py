"""Which functions of mmcv's operator module the stock code and configs of the mm packages can call, by their source.

`python -m tests.mmcv_ops.reached` prints them with the packages that do.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ('mmdet', 'mmseg', 'mmpretrain')


def reached() -> dict[str, set[str]]:
    """Functions of `mmcv._ext`, each with the installed packages whose code or configs lead to it."""
    found: dict[str, set[str]] = {}
    for package in PACKAGES:
        for module, name in used(package):
            for function in functions_behind(module, name):
                found.setdefault(function, set()).add(package)
    return found


def all_functions() -> set[str]:
    """All that mmcv's Python code looks up in its operator module."""
    return {
        constant.value
        for tree in sources().values()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == 'load_ext'
        for constant in ast.walk(call)
        if isinstance(constant, ast.Constant) and constant.value != '_ext'
    }


def used(package: str) -> set[tuple[str, str]]:
    """(module, name) in mmcv.ops that a package imports, or that its configs name: in the registry or for `getattr`."""
    found, spec = set(), find_spec(package)
    for path in sorted(Path(spec.origin).parent.rglob('*.py')) if spec and spec.origin else []:
        text = path.read_text(encoding='utf-8')
        names = set(re.findall(r"""['"](\w+)['"]""", text)) if 'configs' in path.parts else set()
        found |= {place for name in names if (place := registered().get(name) or exported().get(name))}
        for node in ast.walk(parse(text)) if 'mmcv.ops' in text else []:
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('mmcv.ops'):
                found |= {place for alias in node.names if (place := exported().get(alias.name))}
    return found


def parse(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of escape sequences in their strings
        return ast.parse(text)


@cache
def sources() -> dict[str, ast.Module]:
    spec = find_spec('mmcv')
    assert spec is not None and spec.origin is not None
    return {
        path.stem: parse(path.read_text(encoding='utf-8'))
        for path in sorted(Path(spec.origin).parent.joinpath('ops').glob('*.py'))
    }


@cache
def exported() -> dict[str, tuple[str, str]]:
    """Names of the package mmcv.ops, and where each is defined; names of its modules that it does not pass on."""
    own = {name: (module, name) for module in sources() for name in definitions(module)}
    return own | {
        alias.asname or alias.name: (node.module, alias.name)
        for node in sources()['__init__'].body
        if isinstance(node, ast.ImportFrom) and node.level and node.module
        for alias in node.names
    }


@cache
def registered() -> dict[str, tuple[str, str]]:
    """Registry names and the classes behind them."""
    found = {}
    for module, tree in sources().items():
        for node in tree.body:
            for decorator in getattr(node, 'decorator_list', []):
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == 'MODELS.register_module':
                    given = [*decorator.args, *(keyword.value for keyword in decorator.keywords)]
                    found[ast.literal_eval(given[0]) if given else node.name] = (module, node.name)
    return found


@cache
def definitions(module: str) -> dict[str, ast.stmt]:
    """Functions, classes and values at the top of a module of mmcv.ops."""
    found: dict[str, ast.stmt] = {}
    for node in sources()[module].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
    return {name: node for name, node in found.items() if name not in ('__all__', 'ext_module')}


@cache
def functions_behind(module: str, name: str) -> frozenset[str]:
    """What `ext_module.…` appears in a definition of mmcv.ops, and in those of its package that it names."""
    functions, todo, seen = set(), [(module, name)], set()
    while todo:
        place = todo.pop()
        if place in seen or place[0] not in sources() or place[1] not in definitions(place[0]):
            continue
        seen.add(place)
        for node in ast.walk(definitions(place[0])[place[1]]):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == 'ext_module':
                functions.add(node.attr)
            elif isinstance(node, ast.Name):
                todo.append(siblings(place[0]).get(node.id, (place[0], node.id)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                todo.append((place[0], node.value))  # nms.py evaluates names
    return frozenset(functions)


@cache
def siblings(module: str) -> dict[str, tuple[str, str]]:
    return dict(_imports(module))


def _imports(module: str) -> Iterator[tuple[str, tuple[str, str]]]:
    for node in sources()[module].body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            yield from ((alias.asname or alias.name, (node.module, alias.name)) for alias in node.names)


if __name__ == '__main__':
    for function, packages in sorted(reached().items()):
        print(f'{function:35} {", ".join(sorted(packages))}')
