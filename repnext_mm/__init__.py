"""RepNeXt for detection, segmentation and classification with OpenMMLab 2.x.

Importing this package registers everything that configs name in mmengine's root registries; it needs torch and
mmengine only, and without mmengine it gives way to the parts that need torch alone. The command `repnext` registers
when a verb runs: its help takes no seconds, and `repnext check env` works where torch is broken.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repnext_mm._moved import keep_former_paths
from repnext_mm.version import __version__

__all__ = ['__version__']

keep_former_paths()


def _started_as_command() -> bool:
    """Whether this process is `repnext ...` or `python -m repnext_mm ...`; their worker processes are not."""
    if parent_process() is not None:
        return False
    program = sys.argv[0] if sys.argv else ''
    if program == '-m':  # until the module is found; its name stands before its arguments
        return sys.orig_argv[-len(sys.argv)] == 'repnext_mm'
    return Path(program).name in ('repnext', 'repnext.exe', 'repnext-script.py')


if find_spec('mmengine') is not None:
    __all__ += ['FuseBackboneHook', 'RepNeXt', 'RepNeXtU']
    if TYPE_CHECKING or not _started_as_command():
        from repnext_mm._registered import FuseBackboneHook, RepNeXt, RepNeXtU


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module('repnext_mm._registered'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
