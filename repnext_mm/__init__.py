"""RepNeXt for detection, segmentation and classification with OpenMMLab 2.x.

Importing this package registers everything that configs name in mmengine's root registries; it needs torch and
mmengine only, and without mmengine it gives way to the parts that need torch alone.
"""

from importlib.util import find_spec

from repnext_mm._moved import keep_former_paths
from repnext_mm.version import __version__

__all__ = ['__version__']

keep_former_paths()

if find_spec('mmengine') is not None:
    from repnext_mm import data, training  # noqa: F401 - registers
    from repnext_mm.hooks import FuseBackboneHook
    from repnext_mm.models import RepNeXt, RepNeXtU

    __all__ += ['FuseBackboneHook', 'RepNeXt', 'RepNeXtU']
