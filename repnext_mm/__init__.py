"""RepNeXt for detection, segmentation and classification with OpenMMLab 2.x.

Importing this package registers everything that configs name in mmengine's root registries; it needs torch and
mmengine only.
"""

from . import datasets, training  # noqa: F401 - registers
from .hooks import FuseBackboneHook
from .models import RepNeXt, RepNeXtU
from .version import __version__

__all__ = ['FuseBackboneHook', 'RepNeXt', 'RepNeXtU', '__version__']
