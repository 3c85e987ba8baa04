"""Former import paths, kept for one release: each warns and gives the names of the modules that hold them now."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    'apis.checkpoint': ('apis.weight_files',),
    'apis.evaluate': ('apis.test',),
    'apis.new_config': ('data.own.new_config',),
    'apis.weights': ('apis.safe_loading',),
    'benchmark': ('timing', 'lab.bench.environment'),
    'benchmark.complexity': ('lab.bench.complexity',),
    'benchmark.latency': ('timing',),
    'datasets': ('data',),
    'datasets.check': ('data.own',),
    'demo': ('lab.demo.run',),
    'export.parts': ('export.graphs',),
    'export.runtimes': ('export.formats',),
    'export.write': ('export.export',),
    'models.arch': ('models.repnext',),
    'models.cls_head': ('models.heads',),
    'models.pretrained': ('models.base',),
    'models.staged_backbone': ('models.base',),
    'nn': ('models', 'models.repnext', 'models.token_mixers', 'models.repnext_u', 'models.heads', 'models.layers'),
    'reparam.foreign': ('reparam.converters',),
    'validation': ('lab.bench.exactness', 'lab.bench.named_models', 'lab.bench.law_table'),
}
"""From a former module to where its names are, both inside of this package."""


class _Former(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        package, _, name = fullname.partition('.')
        if package != __package__ or name not in MOVED:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        package, _, name = module.__name__.partition('.')
        homes = [f'{package}.{home}' for home in MOVED[name]]
        warnings.warn(
            f'{module.__name__} has moved to {" and ".join(homes)}, and this name goes with the next release',
            DeprecationWarning,
            stacklevel=2,
        )

        def look_up(attribute: str) -> Any:
            for home in map(importlib.import_module, homes):
                if hasattr(home, attribute):
                    return getattr(home, attribute)
            raise AttributeError(f'module {module.__name__!r} has no attribute {attribute!r}')

        module.__getattr__ = look_up  # type: ignore[method-assign]


def keep_former_paths() -> None:
    """Make ``import repnext_mm.FORMER`` work; a second call changes nothing."""
    if not any(isinstance(finder, _Former) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Former())  # before folders of which only compiled files are left
