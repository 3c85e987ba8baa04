"""RepNeXt for detection, segmentation and classification with OpenMMLab 2.x.

Importing this package registers everything that configs name in mmengine's root registries; it needs torch and
mmengine only, and without mmengine it gives way to the parts that need torch alone.
"""

from importlib.util import find_spec

from .version import __version__

__all__ = ['__version__']

if find_spec('mmengine') is not None:
    from . import datasets, training  # noqa: F401 - registers
    from .hooks import FuseBackboneHook
    from .models import RepNeXt, RepNeXtU

    __all__ += ['FuseBackboneHook', 'RepNeXt', 'RepNeXtU']
