"""Layer-wise learning-rate decay on Mask R-CNN: the backbone by depth, neck and heads at the full rate."""

from __future__ import annotations

import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

from repnext_mm import RepNeXt

OPTIM = {
    'type': 'OptimWrapper',
    'optimizer': {'type': 'AdamW', 'lr': 1.0, 'weight_decay': 0.1},
    'constructor': 'BackboneLayerDecayConstructor',
    'paramwise_cfg': {'layer_decay_rate': 0.5, 'norm_decay_mult': 0.0},
}


def rates(model: nn.Module) -> dict[str, dict]:
    wrapper = build_optim_wrapper(model, OPTIM)
    return {group['param_name']: group for group in wrapper.optimizer.param_groups}


def test_on_mask_rcnn():
    pytest.importorskip('mmcv.ops')
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    from tests.configs import CONFIGS

    config = Config.fromfile(CONFIGS / 'mask_rcnn_repnext_m3_coco.py')
    init_default_scope('mmdet')
    from mmdet.registry import MODELS

    config.model.backbone.init_cfg = None
    model = MODELS.build(config.model)
    groups = rates(model)
    assert set(groups) == {name for name, p in model.named_parameters() if p.requires_grad}
    lr = {name: group['lr'] for name, group in groups.items()}
    total = 10  # stem, two stages, five groups of three blocks, the last stage, and what follows the backbone
    assert lr['backbone.stem.stem.0.conv.weight'] == 0.5 ** (total - 1)
    assert lr['backbone.stages.0.blocks.1.channel_mixer.0.conv.weight'] == 0.5 ** (total - 2)
    assert lr['backbone.stages.3.blocks.1.channel_mixer.0.conv.weight'] == 0.5
    assert {rate for name, rate in lr.items() if not name.startswith('backbone.')} == {1.0}
    assert groups['backbone.stages.3.blocks.1.norm.weight']['weight_decay'] == 0.0
    assert groups['neck.lateral_convs.0.conv.weight']['weight_decay'] == 0.1


def test_on_any_model_with_a_backbone():
    pytest.importorskip('mmpretrain')
    model = nn.Module()
    model.backbone = RepNeXt({'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}, frozen_stages=1)
    model.head = nn.Linear(64, 2)
    lr = {name: group['lr'] for name, group in rates(model).items()}
    assert not any(name.startswith(('backbone.stem', 'backbone.stages.0')) for name in lr)
    assert lr['backbone.stages.3.blocks.0.norm.weight'] == 0.5
    assert lr['head.bias'] == 1.0


def test_a_model_without_layer_depth_is_refused():
    pytest.importorskip('mmpretrain')
    with pytest.raises(ValueError, match='Sequential has no backbone with get_layer_depth'):
        rates(nn.Sequential(nn.Linear(1, 1)))
