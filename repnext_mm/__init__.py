"""RepNeXt for detection, segmentation and classification with OpenMMLab 2.x, and the algebra that fuses any model.

The algebra, the networks and the reading of checkpoints need torch alone. Where mmengine is there, importing this
package registers everything that configs name in mmengine's root registries (without OpenCV, which mmengine's hooks
import: all but hooks). The command `repnext` registers when a
verb runs: its help takes no seconds, and `repnext check env` works where torch is broken.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repnext_mm._moved import keep_former_paths
from repnext_mm.errors import MissingPackageError
from repnext_mm.version import __version__

if TYPE_CHECKING:
    from repnext_mm.checkpoints import read_checkpoint
    from repnext_mm.export import export_model
    from repnext_mm.hooks import FuseBackboneHook
    from repnext_mm.models import RepNeXt, RepNeXtU
    from repnext_mm.reparam import FusionReport, Kernel, fuse, fuse_checked, relative_error

__all__ = [
    'FusionReport',
    'Kernel',
    'RepNeXt',
    'RepNeXtU',
    '__version__',
    'fuse',
    'fuse_checked',
    'read_checkpoint',
    'relative_error',
]
_HAS_MMENGINE = find_spec('mmengine') is not None
_HAS_RUNNER = _HAS_MMENGINE and find_spec('cv2') is not None  # which mmengine imports and mmengine-lite comes without
if _HAS_RUNNER:
    __all__ += ['FuseBackboneHook', 'export_model']

_HOMES = {'FuseBackboneHook': 'hooks', 'export_model': 'export', 'read_checkpoint': 'checkpoints'}
_HOMES |= dict.fromkeys(('RepNeXt', 'RepNeXtU'), 'models')
_HOMES |= dict.fromkeys(('FusionReport', 'Kernel', 'fuse', 'fuse_checked', 'relative_error'), 'reparam')


def _started_as_command() -> bool:
    """Whether this process is `repnext ...` or `python -m repnext_mm ...`; their worker processes are not."""
    if parent_process() is not None:
        return False
    program = sys.argv[0] if sys.argv else ''
    if program == '-m':  # until the module is found; its name stands before its arguments
        return sys.orig_argv[-len(sys.argv)] == 'repnext_mm'
    return Path(program).name in ('repnext', 'repnext.exe', 'repnext-script.py')


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    if name in ('FuseBackboneHook', 'export_model') and not _HAS_RUNNER:
        package = 'opencv-python-headless' if _HAS_MMENGINE else 'mmengine'
        raise MissingPackageError(f"{name} needs mmengine's Runner and hooks: pip install {package}")
    globals()[name] = value = getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


keep_former_paths()

if _HAS_MMENGINE and not _started_as_command():
    import_module('repnext_mm._registered')
