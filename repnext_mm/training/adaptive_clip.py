"""Adaptive gradient clipping (Brock et al. 2021, arXiv 2102.06171), by timm's function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor

from repnext_mm.errors import MissingPackageError, UserError


@OPTIM_WRAPPERS.register_module()
class AdaptiveClipOptimWrapper(OptimWrapper):
    """An ``OptimWrapper`` that clips each gradient unit to a fraction of its weight's norm before a step.

    Args:
        clip_grad: ``clip_factor`` (largest ratio of gradient norm to weight norm, default 0.01), ``eps`` (least weight
            norm, 1e-3) and ``norm_type`` (2.0) of timm's ``adaptive_clip_grad``, which all parameters go through.
        options: of ``OptimWrapper``.

    Raises:
        MissingPackageError: timm is not installed.
        UserError: ``clip_grad`` has another entry, or a value that is not positive.
    """

    def __init__(self, *args: Any, clip_grad: Mapping[str, float] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        clip_adaptively(self, clip_grad)


@OPTIM_WRAPPERS.register_module()
class AdaptiveClipAmpOptimWrapper(AmpOptimWrapper):
    """The same in mixed precision; gradients are unscaled first. Arguments as of ``AdaptiveClipOptimWrapper``."""

    def __init__(self, *args: Any, clip_grad: Mapping[str, float] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        clip_adaptively(self, clip_grad)


def clip_adaptively(wrapper: OptimWrapper, clip_grad: Mapping[str, float] | None) -> None:
    """Make a wrapper clip so; ``clip_grad`` as of ``AdaptiveClipOptimWrapper``."""
    settings = {'clip_factor': 0.01, **(clip_grad or {})}
    for name, value in settings.items():
        if name not in ('clip_factor', 'eps', 'norm_type') or not value > 0:
            raise UserError(
                f'clip_grad {name}={value!r} clips nothing adaptively: clip_factor, eps and norm_type are known, and '
                'are positive'
            )
    wrapper.clip_func, wrapper.grad_name = _adaptive_clip_grad(), 'grad_norm'
    wrapper.clip_grad_kwargs = settings


def _adaptive_clip_grad() -> Any:
    try:
        from timm.utils.agc import adaptive_clip_grad
    except ImportError as error:
        raise MissingPackageError(
            "adaptive gradient clipping is timm's: pip install timm, or use OptimWrapper"
        ) from error

    def clip(parameters: list[Tensor], **settings: float) -> None:
        adaptive_clip_grad(parameters, **settings)

    return clip
