"""The algebra of re-parameterization and the surgery that applies it; torch only."""

from .fuse import FORMS, Form, Fusible, FusionReport, check_form, count_norms, count_parameters, exact, fuse
from .kernel import Affine, Kernel, convolve, folds, read, read_norm, to_conv, to_linear
from .laws import add, average, chain, chain_biased, concat, dilate, embed, identity, norm_after, norm_before, split
from .surgery import replaced
from .verify import relative_error, within

__all__ = [
    'FORMS', 'Affine', 'Form', 'Fusible', 'FusionReport', 'Kernel', 'add', 'average', 'chain', 'chain_biased',
    'check_form', 'concat', 'convolve', 'count_norms', 'count_parameters', 'dilate', 'embed', 'exact', 'folds', 'fuse',
    'identity', 'norm_after', 'norm_before', 'read', 'read_norm', 'relative_error', 'replaced', 'split', 'to_conv',
    'to_linear', 'within',
]  # fmt: skip
