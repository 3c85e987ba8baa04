"""Whole models in one file, on the runtimes that people have, each compared with the model it came from.

The names are looked up when they are first used: ``repnext_mm.export.predict`` runs a file without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repnext_mm.export.accuracy import Accuracy, evaluate_file
    from repnext_mm.export.export import (
        Choice,
        ExportedPart,
        ExportReport,
        NotExportedError,
        choose_form,
        export_model,
        export_part,
    )
    from repnext_mm.export.formats import DEFAULT_OPSET, OPSETS, RUNTIMES, format_of, open_exported
    from repnext_mm.export.graphs import PARTS, Part, load_part
    from repnext_mm.export.openers import SUFFIXES

__all__ = [
    'DEFAULT_OPSET',
    'OPSETS',
    'PARTS',
    'RUNTIMES',
    'SUFFIXES',
    'Accuracy',
    'Choice',
    'ExportReport',
    'ExportedPart',
    'NotExportedError',
    'Part',
    'choose_form',
    'evaluate_file',
    'export_model',
    'export_part',
    'format_of',
    'load_part',
    'open_exported',
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in ('formats', 'graphs', 'accuracy', 'export'):
            module = import_module(f'{__name__}.{home}')
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
