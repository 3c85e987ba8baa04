"""The wrapper that merges boxes of several views, and leaves masks out."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope

from repnext_mm.models.box_tta import predicts_masks, without_masks

COCO = Path(__file__).parents[2] / 'configs' / 'mask_rcnn_repnext_m0_coco.py'


def test_it_is_found_by_name_and_has_no_mask_head():
    config = Config.fromfile(COCO)
    init_default_scope('mmdet')
    with torch.device('meta'):
        wrapper = MODELS.build(dict(**config.tta_model, module=config.model))
    assert type(wrapper).__name__ == 'DetTTAModel'
    assert not wrapper.module.roi_head.with_mask
    assert wrapper.module.roi_head.with_bbox
    assert predicts_masks(config.model)  # the config itself is unchanged


def test_models_without_masks_are_unchanged():
    plain = ConfigDict(type='FasterRCNN', roi_head=dict(bbox_head={}))
    assert without_masks(plain) is plain
    assert without_masks(ConfigDict(type='RetinaNet')) == dict(type='RetinaNet')


def test_other_mask_models_are_refused():
    with pytest.raises(ValueError, match="BoxTTAModel cannot take the masks out of a 'SOLO'"):
        without_masks(ConfigDict(type='SOLO', mask_head=dict(type='SOLOHead')))
