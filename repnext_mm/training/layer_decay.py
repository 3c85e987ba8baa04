"""Layer-wise learning-rate decay for detectors and segmentors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from repnext_mm.errors import MissingPackageError, UserError


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
def BackboneLayerDecayConstructor(
    optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None
) -> DefaultOptimWrapperConstructor:
    """MMPretrain's layer-decay constructor, for any model whose ``backbone`` has ``get_layer_depth``.

    MMPretrain's own asks the whole model for ``get_layer_depth``, which only its classifiers have. Here the backbone
    answers for parameters below ``backbone.``, and necks and heads get the full rate.

    Args:
        optim_wrapper_cfg: the optimizer wrapper's config.
        paramwise_cfg: ``layer_decay_rate`` and MMPretrain's other options.

    Raises:
        MissingPackageError: MMPretrain is not installed.
    """
    try:  # a function, so that MMPretrain is imported by those who use it only
        from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
    except ImportError as error:
        raise MissingPackageError(
            'BackboneLayerDecayConstructor builds on MMPretrain, which cannot be imported: install it '
            '(onedl-mmpretrain or mmpretrain), or remove `constructor` from optim_wrapper'
        ) from error

    class BackboneLayerDecay(LearningRateDecayOptimWrapperConstructor):
        def add_params(
            self,
            params: list[dict],
            module: nn.Module,
            prefix: str = '',
            get_layer_depth: Callable[[str], tuple[int, int]] | None = None,
            **kwargs: Any,
        ) -> None:
            if get_layer_depth is None:
                depth_of = getattr(getattr(module, 'backbone', None), 'get_layer_depth', None)
                if depth_of is None:
                    raise UserError(
                        f'{type(module).__name__} has no backbone with get_layer_depth: layer-wise decay needs one, '
                        'such as RepNeXt'
                    )
                get_layer_depth = partial(depth_of, prefix='backbone.')
            super().add_params(params, module, prefix, get_layer_depth, **kwargs)

    return BackboneLayerDecay(optim_wrapper_cfg, paramwise_cfg)
