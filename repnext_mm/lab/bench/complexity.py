"""Parameters and multiply-accumulates (MACs) of every form, at any shape, without data or weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from repnext_mm.apis.config import without_teacher
from repnext_mm.errors import UserError
from repnext_mm.models import FORMS
from repnext_mm.models.branchwise import branch_by_branch
from repnext_mm.reparam import fuse
from repnext_mm.reparam.fuse import count_norms, count_parameters

Shape = tuple[int, int]  # (H, W)
TRAIN_FORMS = ('branches', 'train')
"""How the train form runs: as the authors run it, and as it runs here, merged (its kernels' merging is elementwise:
no MACs by this definition, and independent of the image's size)."""


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """Size and arithmetic of one form of a network, for one image."""

    parameters: int
    macs: int  # multiply-accumulates of convolutions and linear layers
    norms: int

    def __add__(self, other: Complexity) -> Complexity:
        return Complexity(
            parameters=self.parameters + other.parameters, macs=self.macs + other.macs, norms=self.norms + other.norms
        )


def count_macs(run: Callable[[], object]) -> int:
    """Multiply-accumulates of the convolutions and matrix products that a call does; works on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() // 2  # a multiplication and an addition each


def repnext_complexity(
    arch: str | Mapping[str, Any],
    *,
    shape: Shape = (224, 224),
    num_classes: int = 1000,
    forms: Sequence[str] = FORMS,
) -> dict[str, dict[str, Complexity]]:
    """RepNeXt in each of ``TRAIN_FORMS`` and ``forms`` that it has: its backbone, and the authors' whole classifier.

    The classifier has two heads of a norm and a linear layer each, which fuse into one layer.

    Raises:
        UserError: an unknown ``arch`` or form, an image that is too small, or ``num_classes`` is not positive.
    """
    if num_classes < 1:
        raise UserError(f'num_classes={num_classes}: a classifier needs at least one class')
    backbone = build_without_data({'type': 'RepNeXt', 'arch': arch})
    channels = backbone.out_channels[-1]
    linear = Complexity(parameters=(channels + 1) * num_classes, macs=channels * num_classes, norms=0)
    norm = Complexity(parameters=2 * channels, macs=0, norms=1)
    image = torch.empty(1, 3, *shape, device='meta')
    found = {}
    for form, model in _forms(backbone, forms):
        alone = _complexity(model, lambda m: m(image))
        heads = norm + linear + norm + linear if form in TRAIN_FORMS else linear
        found[form] = {'backbone': alone, 'classifier': alone + heads}
    return _different(found)


def model_complexity(config: Config, *, shape: Shape, forms: Sequence[str] = FORMS) -> dict[str, dict[str, Complexity]]:
    """A config's whole model, part by part, in each form that it has; the last part is ``'total'``.

    Only what runs at test time counts. The heads behind a detector's proposals work on ``test_cfg.rpn.max_per_img``
    proposals and ``test_cfg.rcnn.max_per_img`` masks, the most there can be.

    Returns:
        The parts' complexities, for each form.

    Raises:
        UserError: the model has no backbone, or heads of a kind that is not known here.
    """
    init_default_scope(config.get('default_scope') or 'mmengine')
    model = build_without_data(without_teacher(config.model))
    if not hasattr(model, 'backbone'):
        model = _Bare(model)
    channels = next(parameter.shape[1] for parameter in model.parameters() if parameter.dim() == 4)
    image = torch.empty(1, channels, *shape, device='meta')
    found = {}
    for name, form in _forms(model, forms):
        parts = {part: _complexity(module, run) for part, module, run in _parts(form, image)}
        found[name] = {**parts, 'total': sum(parts.values(), start=Complexity(parameters=0, macs=0, norms=0))}
    return _different(found)


def build_without_data(settings: Mapping[str, Any]) -> Any:
    """A model of a config in eval mode, on the meta device: shapes without numbers."""
    try:
        with torch.device('meta'):
            model = MODELS.build(copy.deepcopy(dict(settings)))
    except RuntimeError as error:
        if 'meta' not in str(error).lower():
            raise
        # Some read values of tensors while they are built (MMPretrain's ConvNeXt: its rates of dropped paths).
        model = MODELS.build(dict(settings)).to('meta')
    model.eval()  # of some backbones, it returns None
    return model


class _Bare(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone


def _forms(model: nn.Module, forms: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    yield 'branches', branch_by_branch(model)
    yield 'train', model
    seen = [_structure(model)]
    for form in forms:
        fused = fuse(model, form=form)[0]
        if _structure(fused) not in seen:  # some forms are for networks of several scales
            seen.append(_structure(fused))
            yield form, fused


def _structure(model: nn.Module) -> tuple[list[Any], list[Any]]:
    shapes = [(name, tuple(value.shape)) for name, value in model.state_dict().items()]
    return [(name, type(module)) for name, module in model.named_modules()], shapes


def _different(found: dict[str, dict[str, Complexity]]) -> dict[str, dict[str, Complexity]]:
    """Without the row of branches where there are none: it is then that of the train form."""
    branches, train = TRAIN_FORMS
    return {form: parts for form, parts in found.items() if form != branches or parts != found[train]}


def _complexity(module: Any, run: Callable[[Any], object]) -> Complexity:
    return Complexity(
        parameters=count_parameters(module), macs=count_macs(lambda: run(module)), norms=count_norms(module)
    )


Part = tuple[str, nn.Module, Callable[[Any], object]]  # name, module, how the module is called


def _parts(model: Any, image: torch.Tensor) -> Iterator[Part]:
    yield 'backbone', model.backbone, lambda m: m(image)
    with torch.no_grad():
        features = model.backbone(image)
        if getattr(model, 'neck', None) is not None:
            taken = features
            yield 'neck', model.neck, lambda m: m(taken)
            features = model.neck(taken)
    heads = {name for name, _ in model.named_children() if name.endswith('head')}
    for name in ('head', 'decode_head', 'rpn_head'):  # of classifiers, segmentors, two-stage detectors
        if name in heads:
            yield name, getattr(model, name), lambda m: _all(m, features)
    if 'bbox_head' in heads:  # of one-stage detectors
        yield 'bbox_head', model.bbox_head, lambda m: m(features)
    if 'roi_head' in heads:
        yield from _roi_parts(model.roi_head, model.test_cfg)
    unknown = heads - {'head', 'decode_head', 'rpn_head', 'bbox_head', 'roi_head', 'auxiliary_head'}
    if unknown:
        raise UserError(
            f'{type(model).__name__} has heads of an unknown kind, {", ".join(sorted(unknown))}: what they compute at '
            'test time cannot be counted, give a config of its backbone only'
        )


def _roi_parts(roi_head: Any, test_cfg: Any) -> Iterator[Part]:
    regions = {'bbox': test_cfg.rpn.max_per_img, 'mask': test_cfg.rcnn.max_per_img}
    for kind, count in regions.items():
        head = getattr(roi_head, f'{kind}_head', None)
        if head is not None:
            extractor: Any = getattr(roi_head, f'{kind}_roi_extractor', None) or roi_head.bbox_roi_extractor
            extractor = extractor[0] if isinstance(extractor, nn.ModuleList) else extractor
            size = extractor.roi_layers[0].output_size
            crops = torch.empty(count, extractor.out_channels, *size, device='meta')
            yield f'{kind}_head', head, partial(_all, value=crops)


def _all(module: nn.Module, value: object) -> None:
    for stage in module if isinstance(module, nn.ModuleList) else [module]:  # cascades have a head per stage
        stage(value)
