"""Former import paths, kept for one release: each warns and gives the names of the modules that hold them now."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    'apis.checkpoint': ('apis.weight_files',),
    'apis.evaluate': ('apis.test',),
    'apis.new_config': ('data.own.new_config',),
    'apis.weights': ('apis.safe_loading',),
    'benchmark': ('timing', 'lab.bench.record'),
    'benchmark.branchwise': ('models.branchwise',),
    'benchmark.complexity': ('lab.bench.complexity',),
    'benchmark.latency': ('timing',),
    'datasets': ('data',),
    'datasets.check': ('data.own',),
    'demo': ('lab.demo.run',),
    'export.parts': ('export.graphs',),
    'export.runtimes': ('export.formats',),
    'export.write': ('export.export',),
    'hooks.whole_files': ('checkpoints',),
    'models.arch': ('models.repnext',),
    'models.cls_head': ('models.heads',),
    'models.pretrained': ('models.base',),
    'models.staged_backbone': ('models.base',),
    'nn': ('models', 'models.repnext', 'models.token_mixers', 'models.repnext_u', 'models.heads', 'models.layers'),
    'reparam.foreign': ('reparam.converters',),
    'validation': ('lab.bench.exactness', 'lab.bench.named_models', 'lab.bench.law_table'),
}
"""From a former module, and all below it, to where its names are, both inside of this package."""

_RENAMED = {
    'Recognised': 'Recognized',
    'exact': 'as_float64',
    'folds': 'is_affine',
    'is_whole': 'is_whole_file',
    'model_state': 'state_dict_of',
    'read': 'kernel_of',
    'read_norm': 'affine_of',
    'recognise': 'recognize',
    'within': 'all_within',
}


def former_names(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """A ``__getattr__`` for a package whose names have gone to modules in it: each warns.

    Args:
        package: its ``__name__``.
        homes: the former names in the package, by the module that has them.
    """

    def look_up(name: str) -> Any:
        for home, names in homes.items():
            if name in names:
                new, module = _RENAMED.get(name, name), f'{package}.{home}'
                warnings.warn(
                    f'{package}.{name} is {module}.{new} now, and the former name goes with the next release',
                    DeprecationWarning,
                    stacklevel=2,
                )
                return getattr(importlib.import_module(module), new)
        raise AttributeError(f'module {package!r} has no attribute {name!r}')

    return look_up


def _homes(name: str) -> Sequence[str]:
    while name not in MOVED and '.' in name:
        name = name.rpartition('.')[0]
    return MOVED.get(name, ())


class _Former(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        package, _, name = fullname.partition('.')
        if package != __package__ or not _homes(name):
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        package, _, name = module.__name__.partition('.')
        homes = [f'{package}.{home}' for home in _homes(name)]
        warnings.warn(
            f'{module.__name__} has moved to {" and ".join(homes)}, and this name goes with the next release',
            DeprecationWarning,
            stacklevel=2,
        )

        def look_up(attribute: str) -> Any:
            for home in map(importlib.import_module, homes):
                for now in (attribute, _RENAMED.get(attribute, attribute)):
                    if hasattr(home, now):
                        return getattr(home, now)
            raise AttributeError(f'module {module.__name__!r} has no attribute {attribute!r}')

        module.__getattr__ = look_up  # type: ignore[method-assign]


def keep_former_paths() -> None:
    """Make ``import repnext_mm.FORMER`` work; a second call changes nothing."""
    if not any(isinstance(finder, _Former) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Former())  # before folders of which only compiled files are left
