"""The names that mmcv looks up in its operator module `mmcv._ext`, served from torchvision and torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torchvision

from repnext_mm.mmcv_ops import (
    carafe,
    deform_conv,
    deform_roi_pool,
    focal_loss,
    masked_conv,
    ms_deform_attn,
    psamask,
    roi,
    rotated,
    suppression,
    sync_bn,
)
from repnext_mm.mmcv_ops.installation import compile_command


def get_compiler_version() -> str:
    """What mmcv's report of the environment shows for the operators' compiler."""
    return f'none, the operators run on torchvision {torchvision.__version__} by repnext_mm.mmcv_ops'


def get_compiling_cuda_version() -> str:
    """The CUDA that the operators run on is that of torch."""
    return torch.version.cuda or 'not available'


SERVED: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        carafe.carafe_backward,
        carafe.carafe_forward,
        carafe.carafe_naive_backward,
        carafe.carafe_naive_forward,
        deform_conv.deform_conv_backward_input,
        deform_conv.deform_conv_backward_parameters,
        deform_conv.deform_conv_forward,
        deform_conv.modulated_deform_conv_backward,
        deform_conv.modulated_deform_conv_forward,
        deform_roi_pool.deform_roi_pool_backward,
        deform_roi_pool.deform_roi_pool_forward,
        focal_loss.sigmoid_focal_loss_backward,
        focal_loss.sigmoid_focal_loss_forward,
        focal_loss.softmax_focal_loss_backward,
        focal_loss.softmax_focal_loss_forward,
        get_compiler_version,
        get_compiling_cuda_version,
        masked_conv.masked_col2im_forward,
        masked_conv.masked_im2col_forward,
        ms_deform_attn.ms_deform_attn_backward,
        ms_deform_attn.ms_deform_attn_forward,
        psamask.psamask_backward,
        psamask.psamask_forward,
        roi.roi_align_backward,
        roi.roi_align_forward,
        roi.roi_pool_backward,
        roi.roi_pool_forward,
        rotated.box_iou_rotated,
        rotated.nms_rotated,
        suppression.bbox_overlaps,
        suppression.line_nms_forward,
        suppression.nms,
        suppression.nms_match,
        suppression.softnms,
        sync_bn.sync_bn_backward_data,
        sync_bn.sync_bn_backward_param,
        sync_bn.sync_bn_forward_mean,
        sync_bn.sync_bn_forward_output,
        sync_bn.sync_bn_forward_var,
    )
}


def __getattr__(name: str) -> Callable[..., Any]:
    """An operator: importing mmcv.ops asks for all of them, so those that are not served raise when they are called."""
    if name.startswith('_'):
        raise AttributeError(f'mmcv._ext has no {name!r}')
    if name in SERVED:
        return SERVED[name]

    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"mmcv's operator {name!r} is not among those that repnext_mm.mmcv_ops serves: compile mmcv, with a C++ "
            f'compiler and the headers of Python at hand, by {compile_command()}'
        )

    missing.__name__ = missing.__qualname__ = name
    return missing
