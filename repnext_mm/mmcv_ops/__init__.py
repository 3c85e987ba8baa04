"""mmcv's operators without a compiler: on torchvision's and torch's own, on a CPU and a GPU alike.

`python -m repnext_mm.mmcv_ops install` puts them in the place of mmcv's compiled ones, for every program that uses this
environment's mmcv. docs/operators.md lists what is served. Needs torch and torchvision, neither mmengine nor mmcv.
"""

from repnext_mm.mmcv_ops.installation import Operators, install, remove, status

__all__ = ['Operators', 'install', 'remove', 'status']
