"""The algebra of re-parameterization and the surgery that applies it; torch only."""

from repnext_mm.reparam.affine_laws import norm_after_transposed, norm_of_sum
from repnext_mm.reparam.as_kernels import as_linear, as_pointwise, average_pool, norm_alone
from repnext_mm.reparam.checked import FusionError, fuse_checked
from repnext_mm.reparam.fuse import FusionReport, count_norms, count_parameters, fuse, sharded
from repnext_mm.reparam.fusible import Form, Fusible, check_form, forms_of, fused_or_kept
from repnext_mm.reparam.grouped import concat_grouped, ungroup
from repnext_mm.reparam.kernel import Affine, Kernel, convolve, exact, folds, read, read_norm, to_conv, to_linear
from repnext_mm.reparam.laws import (
    add,
    average,
    chain,
    chain_biased,
    concat,
    dilate,
    embed,
    identity,
    norm_after,
    norm_before,
    split,
)
from repnext_mm.reparam.plain_layers import hooks_of_all_modules, is_intercepted, is_plain, why_called, why_intercepted
from repnext_mm.reparam.pointwise import pointwise_after, pointwise_before
from repnext_mm.reparam.shortcut import eliminate_shortcut
from repnext_mm.reparam.surgery import anchored, replaced
from repnext_mm.reparam.unchanged import generators_kept, state_kept
from repnext_mm.reparam.verify import all_within, relative_error

__all__ = [
    'Affine',
    'Form',
    'Fusible',
    'FusionError',
    'FusionReport',
    'Kernel',
    'add',
    'all_within',
    'anchored',
    'as_linear',
    'as_pointwise',
    'average',
    'average_pool',
    'chain',
    'chain_biased',
    'check_form',
    'concat',
    'concat_grouped',
    'convolve',
    'count_norms',
    'count_parameters',
    'dilate',
    'eliminate_shortcut',
    'embed',
    'exact',
    'folds',
    'forms_of',
    'fuse',
    'fuse_checked',
    'fused_or_kept',
    'generators_kept',
    'hooks_of_all_modules',
    'identity',
    'is_intercepted',
    'is_plain',
    'norm_after',
    'norm_after_transposed',
    'norm_alone',
    'norm_before',
    'norm_of_sum',
    'pointwise_after',
    'pointwise_before',
    'read',
    'read_norm',
    'relative_error',
    'replaced',
    'sharded',
    'split',
    'state_kept',
    'to_conv',
    'to_linear',
    'ungroup',
    'why_called',
    'why_intercepted',
]
