"""Class activation maps of several detectors that differ in the backbone only, side by side on the same images."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from repnext_mm.apis.build import build_model
from repnext_mm.apis.config import load_config
from repnext_mm.errors import MissingPackageError, UserError
from repnext_mm.lab.draw.cam import ActivationMap, NothingToExplain, activation_map
from repnext_mm.lab.draw.canvas import new_grid, save_png
from repnext_mm.lab.draw.subject import Seen, Subject, see
from repnext_mm.models import ARCHITECTURES, resolve_arch

PAPER = ('repvit_m2_3', 'swiftformer_l3', 'fastvit_sa24', 'repnext_m5')
"""The networks of the paper's figure 3, as timm and this package name them."""
_STRIDES = (4, 8, 16, 32)


def with_backbone(config: Config, network: str) -> Config:
    """A copy of a detector's config on another backbone, with a neck of its widths.

    Args:
        config: with ``model.backbone`` and ``model.neck.in_channels``, as our Mask R-CNN configs.
        network: ``repnext_m0`` to ``repnext_m5`` and their E variants, or a name of timm, which is built by
            MMPretrain's ``TIMMBackbone``.

    Raises:
        UserError: timm or mmpretrain is missing, the network is unknown or has no four levels at strides 4, 8, 16, 32,
            or the config has no neck.
    """
    model = config.get('model', {})
    if 'in_channels' not in model.get('neck', {}):
        raise UserError(
            f"config '{config.filename}' has no model.neck.in_channels to fit to {network}: give a Mask R-CNN config"
        )
    changed = copy.deepcopy(config)
    arch = network.removeprefix('repnext_')
    if network.startswith('repnext_') and arch in ARCHITECTURES:
        changed.model.backbone = {'type': 'RepNeXt', 'arch': arch}
        changed.model.neck.in_channels = list(resolve_arch(arch).embed_dims)
        return changed
    _need_mmpretrain(network)
    changed.model.backbone = {
        'type': 'mmpretrain.TIMMBackbone',
        'model_name': network,
        'features_only': True,
        'pretrained': False,
        'out_indices': (0, 1, 2, 3),
    }
    changed.model.neck.in_channels = _widths(network)
    return changed


def detector(config: Config, network: str, weights: str | Path | None = None, *, trust_pickle: bool = False) -> Subject:
    """A config's detector on another backbone, with the weights of a file or with random ones, always the same.

    Without weights no box is sure, so that boxes of any score are explained.

    Raises:
        UserError: see ``with_backbone``; or the file cannot be read or does not fit.
    """
    changed = with_backbone(config, network)
    if weights is not None:
        trained = build_model(changed, weights, trust_pickle=trust_pickle)
        return Subject(name=network, model=trained, config=changed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = build_model(changed)
    if 'rcnn' in (model.test_cfg or {}):
        model.roi_head.test_cfg.score_thr = 0.0
    return Subject(name=f'{network}\nrandom weights', model=model, config=changed)


def level_layer(backbone: nn.Module, level: int) -> str:
    """The module of a backbone whose output is a level, 0 (stride 4) to 3 (stride 32).

    Raises:
        UserError: there is no such level.
    """
    if not 0 <= level < len(_STRIDES):
        raise UserError(f'level {level} does not exist: choose 0 (stride 4) to {len(_STRIDES) - 1} (stride 32)')
    timm_model: Any = getattr(backbone, 'timm_model', None)
    if timm_model is None:
        return f'stages.{level}'
    names = dict(timm_model.named_modules())
    module = timm_model.feature_info.module_name(level)
    flat = module.replace('.', '_')  # timm flattens the networks that it takes apart into a list of layers
    return f'timm_model.{flat if flat in names else module}'


def draw_cam_sheet(
    subjects: Sequence[Subject],
    images: Sequence[str | Path],
    path: str | Path,
    *,
    title: str,
    method: str = 'gradcam',
    level: int = 3,
    label: str | None = None,
) -> Path:
    """Save a row for each image: the image, then the map of each detector, all through the same test pipeline.

    Args:
        subjects: detectors, from ``detector``.
        images: files.
        path: of the PNG.
        title: of the sheet.
        method: a key of ``repnext_mm.lab.draw.cam.METHODS``.
        level: whose features are explained.
        label: a class's name; by default each detector's own best box decides, and the panel names its class.

    Raises:
        UserError: the package grad-cam is missing, there is nothing to draw, or see ``activation_map``.
    """
    if not subjects or not images:
        raise UserError(f'{len(subjects)} detectors and {len(images)} images: give at least one of each')
    columns = 1 + len(subjects)
    figure, grid = new_grid(len(images), columns, (2.5 * columns + 0.9, 2.55 * len(images) + 0.9), title)
    drawn = None
    for line, image in zip(grid, images, strict=True):
        for axis, subject in zip(line[1:], subjects, strict=True):
            seen = see(subject, image)
            line[0].imshow(seen.image)
            found = explained(subject, seen, method=method, level=level, label=label)
            axis.imshow(seen.image.mean(axis=2), cmap='gray', vmin=0, vmax=255)
            if isinstance(found, str):
                axis.text(0.5, -0.04, found, transform=axis.transAxes, ha='center', va='top', fontsize=8)
                continue
            drawn = axis.imshow(found.values, cmap='inferno', vmin=0, vmax=1, alpha=0.6)
            axis.text(
                0.5, -0.04, f'{found.label}: {found.what}', transform=axis.transAxes, ha='center', va='top', fontsize=8
            )
    for axis, name in zip(grid[0], ('image', *(subject.name for subject in subjects)), strict=True):
        axis.set_title(name, fontsize=10)
    if drawn is not None:
        figure.colorbar(drawn, ax=grid, label='activation / largest', shrink=0.75)
    return save_png(figure, path)


def load_detectors(
    config_path: str | Path,
    networks: Sequence[str],
    weights: Mapping[str, str],
    *,
    trust_pickle: bool = False,
    options: Mapping[str, Any] | None = None,
    save_configs: Path | None = None,
) -> list[Subject]:
    """The detectors of one config on several backbones; their configs are written for training where asked for.

    Raises:
        UserError: see ``detector``; or weights are given for another network.
    """
    strangers = sorted(set(weights) - set(networks))
    if strangers:
        raise UserError(f'weights are given for {", ".join(strangers)}: choose from {", ".join(networks)}')
    config = load_config(config_path, options=options)
    if config.get('default_scope') != 'mmdet':
        raise UserError(f"config '{config_path}' is not a detector's: give a Mask R-CNN config of mmdet")
    if save_configs is not None:
        save_configs.mkdir(parents=True, exist_ok=True)
        for network in networks:
            with_backbone(config, network).dump(save_configs / f'{Path(config_path).stem}_{network}.py')
    return [detector(config, name, weights.get(name), trust_pickle=trust_pickle) for name in networks]


def explained(subject: Subject, seen: Seen, *, method: str, level: int, label: str | None) -> ActivationMap | str:
    """The map, or in words why there is none: one detector that misses an object must not prevent the sheet."""
    try:
        return activation_map(subject, seen, method=method, layer=level_layer(subject.backbone, level), label=label)
    except NothingToExplain as nothing:
        return nothing.short


def _widths(network: str) -> list[int]:
    try:
        import timm
    except ImportError as error:
        raise MissingPackageError(f'{network} needs the package timm ({error}): pip install timm') from error
    if not timm.is_model(network):
        family = ', '.join(timm.list_models(f'{network.split("_")[0]}*')[:8]) or 'a name of timm.list_models()'
        raise UserError(f"network '{network}' is unknown: take one of {', '.join(PAPER)}, or of timm ({family})")
    with torch.device('meta'):
        info = timm.create_model(network, pretrained=False, features_only=True).feature_info
    if tuple(info.reduction())[:4] != _STRIDES:
        raise UserError(f"network '{network}' has levels at strides {info.reduction()}: 4, 8, 16 and 32 are needed")
    return list(info.channels())[:4]


def _need_mmpretrain(network: str) -> None:
    try:
        import mmpretrain  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f'{network} is built by mmpretrain.TIMMBackbone ({error}): install mmpretrain beside mmdet'
        ) from error
