"""The algebra of re-parameterization: a convolution is a value, laws are functions of values, fusing is one of models.

It needs torch alone. Here stands what a user of the algebra imports; how it is done stands in the modules.
"""

from repnext_mm._moved import former_names
from repnext_mm.reparam.checked import FusionError, fuse_checked
from repnext_mm.reparam.fuse import FusionReport, fuse
from repnext_mm.reparam.fusible import Fusible
from repnext_mm.reparam.kernel import Affine, Kernel, affine_of, as_float64, is_affine, kernel_of, to_conv
from repnext_mm.reparam.laws import (
    add,
    as_pointwise,
    average_pool,
    chain,
    chain_biased,
    concat,
    concat_grouped,
    dilate,
    embed,
    identity,
    norm_after,
    norm_after_transposed,
    norm_alone,
    norm_before,
    norm_of_sum,
    pointwise_after,
    pointwise_before,
    split,
    ungroup,
)
from repnext_mm.reparam.shortcut import eliminate_shortcut
from repnext_mm.reparam.verify import relative_error

__all__ = [
    'Affine',
    'Fusible',
    'FusionError',
    'FusionReport',
    'Kernel',
    'add',
    'affine_of',
    'as_float64',
    'as_pointwise',
    'average_pool',
    'chain',
    'chain_biased',
    'concat',
    'concat_grouped',
    'dilate',
    'eliminate_shortcut',
    'embed',
    'fuse',
    'fuse_checked',
    'identity',
    'is_affine',
    'kernel_of',
    'norm_after',
    'norm_after_transposed',
    'norm_alone',
    'norm_before',
    'norm_of_sum',
    'pointwise_after',
    'pointwise_before',
    'relative_error',
    'split',
    'to_conv',
    'ungroup',
]

_FORMER = {
    'fuse': ('count_norms', 'count_parameters', 'sharded'),
    'fusible': ('Form', 'check_form', 'fused_or_kept'),
    'kernel': ('convolve', 'exact', 'folds', 'read', 'read_norm', 'to_linear'),
    'laws': ('as_linear', 'average'),
    'plain_layers': ('hooks_of_all_modules', 'is_intercepted', 'is_plain', 'why_called', 'why_intercepted'),
    'surgery': ('anchored', 'replaced'),
    'unchanged': ('generators_kept', 'state_kept'),
    'verify': ('within',),
}
"""Names that stood here, by the module that has them, for one release."""

__getattr__ = former_names(__name__, _FORMER)
