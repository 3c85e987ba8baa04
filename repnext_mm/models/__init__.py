"""What configs name: the arch table and the backbone."""

from .arch import ARCHITECTURES, Arch, resolve_arch
from .repnext import RepNeXt

__all__ = ['ARCHITECTURES', 'Arch', 'RepNeXt', 'resolve_arch']
