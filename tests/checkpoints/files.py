"""The weight files that RepNeXt users have, built from the facts about their writers, not from our own models.

Backbone weights are those of tests/data (keys of the authors' implementation); heads and necks come from stock mmdet
and mmseg models.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

State = dict[str, Tensor]


def typed(state: Mapping[str, Tensor]) -> State:
    """Weights as files hold them: float32, and counters as int64."""
    return {k: v.float() if v.is_floating_point() else v.long() for k, v in state.items()}


def backbone_only(state: Mapping[str, Tensor]) -> State:
    return {key: value for key, value in state.items() if not key.startswith('head.')}


def authors_published(path: Path, state: State) -> Path:
    torch.save({'model': state}, path)
    return path


def authors_training(path: Path, state: State) -> Path:
    """What a training run of one's own with the authors' script writes."""
    content = {
        'model': state,
        'optimizer': {'state': {}, 'param_groups': [{'lr': 1e-3}]},
        'lr_scheduler': {'t': 1},
        'epoch': 299,
        'model_ema': {key: value.clone() for key, value in state.items()},
        'scaler': {'scale': 65536.0},
        'args': argparse.Namespace(model='repnext_m0', lr=1e-3, data_path='imagenet'),
    }
    torch.save(content, path)
    return path


def timm_saver(path: Path, state: State) -> Path:
    """The StarNet recipe's `.pth.tar`."""
    content = {
        'epoch': 304,
        'arch': 'repnext_m0',
        'state_dict': state,
        'optimizer': {'state': {}, 'param_groups': []},
        'version': 2,
        'args': argparse.Namespace(model='repnext_m0', aa='rand-m1-mstd0.5-inc1'),
        'metric': 73.764,
        'state_dict_ema': {key: value.clone() for key, value in state.items()},
    }
    torch.save(content, path)
    return path


def old_detector(path: Path, state: State, others: State) -> Path:
    """mmdet 2.28: the whole model below `state_dict`, classes in `meta`."""
    weights = {f'backbone.{key}': value for key, value in backbone_only(state).items()} | others
    meta = {
        'env_info': 'sys.platform: linux',
        'config': 'model = dict()',
        'seed': 0,
        'mmdet_version': '2.28.2',
        'CLASSES': ('person', 'bicycle'),
        'PALETTE': [(220, 20, 60), (119, 11, 32)],
        'epoch': 12,
        'iter': 87960,
        'mmcv_version': '1.7.2',
        'time': 'Mon Jul  1 00:00:00 2024',
    }
    torch.save({'meta': meta, 'state_dict': weights, 'optimizer': {'state': {}, 'param_groups': []}}, path)
    return path


def old_segmentor(path: Path, state: State, others: State) -> Path:
    """mmseg 0.30."""
    weights = {f'backbone.{key}': value for key, value in backbone_only(state).items()} | others
    meta = {
        'mmseg_version': '0.30.0+',
        'CLASSES': ('wall', 'building'),
        'PALETTE': [[120, 120, 120], [180, 120, 120]],
        'iter': 80000,
        'mmcv_version': '1.7.2',
    }
    torch.save({'meta': meta, 'state_dict': weights, 'optimizer': {'state': {}, 'param_groups': []}}, path)
    return path


def fused_names(state: Mapping[str, Tensor]) -> set[str]:
    """The authors' fused keys of a train-form state dict (facts A4): norms of blocks and stages stay."""
    names = set()
    for key in state:
        key = re.sub(r'(conv_[sm])\.conv_\w+\.(weight|bias)$', r'\1', key)
        key = re.sub(r'((?:stem\.stem|channel_mixer)\.\d)\.(?:conv|norm)\.\w+$', r'\1', key)
        key = re.sub(r'^head\.(head|head_dist)\..*$', 'head', key)
        if key.endswith(('conv_s', 'conv_m', 'head')) or re.search(r'(stem\.stem|channel_mixer)\.\d$', key):
            names |= {f'{key}.weight', f'{key}.bias'}
        else:
            names.add(key)
    return names


class FusedClassifier(nn.Module):
    """The authors' fused network, for tracing: backbone with norms kept, mean over pixels, one linear head."""

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.stem, self.stages, self.head = backbone.stem, backbone.stages, head

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


def stock_parts(package: str, base: str, channels: list[int]) -> State:
    """State dict of everything but the backbone of a stock model, with RepNeXt's channels at its neck."""
    root = Path(importlib.util.find_spec(package).origin).parent
    config = Config.fromfile(root / '.mim/configs/_base_/models' / base)
    init_default_scope(package)
    model = config.model
    model.pop('pretrained', None)
    model.backbone.pop('init_cfg', None)
    model.neck.in_channels = channels
    if package == 'mmseg':
        model.neck.out_channels = 256
        model.decode_head.update(num_classes=150)
    built = MODELS.build(model)
    return {
        key: torch.randn_like(value) if value.is_floating_point() else value
        for key, value in built.state_dict().items()
        if not key.startswith('backbone.')
    }
