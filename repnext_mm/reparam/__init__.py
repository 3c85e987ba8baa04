"""The algebra of re-parameterization and the surgery that applies it; torch only."""

from .fuse import FORMS, Fusible, FusionReport, count_norms, count_parameters, exact, fuse
from .kernel import Affine, Kernel, convolve, folds, read, read_norm, to_conv
from .laws import add, average, chain, concat, dilate, embed, norm_after, norm_before, split
from .surgery import replaced
from .verify import relative_error, within

__all__ = [
    'FORMS', 'Affine', 'Fusible', 'FusionReport', 'Kernel', 'add', 'average', 'chain', 'concat', 'convolve',
    'count_norms', 'count_parameters', 'dilate', 'embed', 'exact', 'folds', 'fuse', 'norm_after', 'norm_before',
    'read', 'read_norm', 'relative_error', 'replaced', 'split', 'to_conv', 'within',
]  # fmt: skip
