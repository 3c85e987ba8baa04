"""Test-time augmentation for models with masks: merge boxes only."""

from __future__ import annotations

from typing import Any

from torch import nn

from repnext_mm.errors import UserError
from repnext_mm.models.registry import register, type_name


@register('BoxTTAModel')
def build_box_tta(*, module: dict[str, Any], tta_cfg: dict[str, Any], data_preprocessor: Any = None) -> nn.Module:
    """mmdet's ``DetTTAModel`` around a detector without its mask head; a function, so that mmdet is imported late.

    mmdet refuses masks in the middle of a test, since masks of several views cannot be merged there. The boxes of a
    two-stage detector do not depend on its mask head.

    Raises:
        ValueError: the model's masks do not come from ``roi_head.mask_head``.
    """
    from mmdet.models import DetTTAModel

    return DetTTAModel(tta_cfg=tta_cfg, module=without_masks(module), data_preprocessor=data_preprocessor)


def without_masks(model: dict[str, Any]) -> dict[str, Any]:
    """The same model config less the mask head of its ``roi_head``; a model that predicts no masks is unchanged."""
    head = model.get('roi_head') or {}
    kept = {key: value for key, value in head.items() if key not in ('mask_head', 'mask_roi_extractor')}
    if len(kept) < len(head):
        return type(model)({**model, 'roi_head': type(head)(kept)})
    if predicts_masks(model):
        raise UserError(
            f"BoxTTAModel cannot take the masks out of a '{type_name(model.get('type'))}': it knows "
            '`roi_head.mask_head` only; test this model without --tta'
        )
    return model


def predicts_masks(model: dict[str, Any]) -> bool:
    """Whether a detector's config has a part that makes instance masks."""
    return bool((model.get('roi_head') or {}).get('mask_head') or model.get('mask_head'))
