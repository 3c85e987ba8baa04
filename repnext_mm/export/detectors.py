"""Whole detectors of mmdet as one graph: an image in, boxes, scores, labels and masks out, standard operators only.

The graph calls the model's own layers, anchors and coders. Rewritten is only what a tracer cannot follow: Python's
``min`` and ``if`` over numbers of boxes, and writes into tensors of such sizes. One image at a time; any H and W.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.onnx.operators import shape_as_tensor

from repnext_mm.errors import UserError
from repnext_mm.export.predict import crops_on_image, maps_on_image

STRIDE = 32  # where the model's preprocessor does not say to what multiple it pads


class Dense(NamedTuple):
    """What differs between the heads of single-stage detectors."""

    centerness: bool = False  # a third output that scores are multiplied with, once candidates are chosen
    integral: bool = False  # sides of boxes as distributions, in strides
    kernels: bool = False  # the third output holds each instance's own convolutions, the fourth what they run on


DENSE_HEADS = {
    'ATSSHead': Dense(centerness=True),
    'FCOSHead': Dense(centerness=True),
    'GFLHead': Dense(integral=True),
    'RetinaHead': Dense(),
    'RetinaSepBNHead': Dense(),
    'RTMDetHead': Dense(),
    'RTMDetSepBNHead': Dense(),
    'RTMDetInsHead': Dense(kernels=True),
    'RTMDetInsSepBNHead': Dense(kernels=True),
}
ROI_HEADS = ('StandardRoIHead', 'CascadeRoIHead')  # a standard one is a cascade of one stage
ROI_PARTS = {
    'bbox_head': ('BBoxHead', 'ConvFCBBoxHead', 'Shared2FCBBoxHead', 'Shared4Conv1FCBBoxHead'),
    'bbox_roi_extractor': ('SingleRoIExtractor',),
    'mask_head': ('FCNMaskHead',),
    'mask_roi_extractor': ('SingleRoIExtractor',),
}


def detector_graph(model: Any) -> Detector:
    """The graph of an mmdet detector, from a normalized image to boxes, scores, labels and, where it has them, masks.

    Raises:
        UserError: one of its heads is not in the lists above, or suppresses boxes otherwise than by plain NMS.
    """
    if hasattr(model, 'roi_head') and hasattr(model, 'rpn_head'):
        return TwoStage(model)
    if hasattr(model, 'bbox_head'):
        return SingleStage(model)
    raise UserError(
        f"a whole '{type(model).__name__}' is not exported here: detectors of mmdet with one or two stages are, and "
        'the backbone of anything (part=backbone)'
    )


class Detector(nn.Module, ABC):
    """``(1, 3, H, W)``, normalized, to ``(n, 4)`` boxes in pixels, ``(n,)`` scores, ``(n,)`` labels and masks."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    @property
    @abstractmethod
    def with_masks(self) -> bool:
        """Whether masks are the fourth output."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        height, width = shape_as_tensor(image)[2:].to(image.dtype)
        border = torch.stack([width, height, width, height])
        return self.detect(self.model.extract_feat(padded(image, self.model.data_preprocessor)), border)

    @abstractmethod
    def detect(self, features: Sequence[Tensor], border: Tensor) -> tuple[Tensor, ...]:
        """From feature maps and the border ``(W, H, W, H)`` of the image to the outputs."""


class TwoStage(Detector):
    """Faster, Mask and Cascade R-CNN: proposals, then one or more stages of heads on what RoIAlign cuts out."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        head = model.roi_head
        _check_type(model.rpn_head, ('RPNHead',))
        _check_type(head, ROI_HEADS)
        for name, known in ROI_PARTS.items():
            for part in _stages(getattr(head, name, None)):
                _check_type(part, known)
        if getattr(head, 'with_shared_head', False) or any(part.custom_activation for part in _stages(head.bbox_head)):
            raise UserError(
                f'the {type(head).__name__} has a shared head or an activation of its own, which is not exported here: '
                'export the backbone (part=backbone)'
            )
        for config in (model.rpn_head.test_cfg, head.test_cfg):
            _check_nms(config)

    @property
    def with_masks(self) -> bool:
        return bool(self.model.roi_head.with_mask)

    def detect(self, features: Sequence[Tensor], border: Tensor) -> tuple[Tensor, ...]:
        head = self.model.roi_head
        boxes = self.proposals(features, border)
        logits: Any = 0
        heads, extractors = _stages(head.bbox_head), _stages(head.bbox_roi_extractor)
        for stage, (part, extractor) in enumerate(zip(heads, extractors, strict=True)):
            found, deltas = part(regions(extractor, features, boxes))
            logits = logits + found / len(heads)
            if stage + 1 < len(heads):
                boxes = clipped(_of_class(part, boxes, found[:, :-1].argmax(1), deltas), border, part.bbox_coder)
        boxes, scores, labels = self.classified(heads[-1], boxes, logits, deltas, border)
        if not self.with_masks:
            return boxes, scores, labels
        masks = [
            _map_of_class(part, part(regions(extractor, features, boxes)), labels).sigmoid()
            for part, extractor in zip(_stages(head.mask_head), _stages(head.mask_roi_extractor), strict=True)
        ]
        return boxes, scores, labels, sum(masks[1:], masks[0]) / len(masks)

    def proposals(self, features: Sequence[Tensor], border: Tensor) -> Tensor:
        """``(n, 4)``: the best of each level, suppressed level by level, the best of the rest."""
        head, config = self.model.rpn_head, self.model.rpn_head.test_cfg
        every: list[tuple[Tensor, ...]] = []
        for level, (logits, deltas) in enumerate(zip(*head(features), strict=True)):
            scores = activated(head, rows(logits, head.cls_out_channels))[:, 0]
            scores, deltas, anchors = best(
                config.get('nms_pre', -1), scores, rows(deltas, 4), priors(head, level, logits)
            )
            boxes = clipped(head.bbox_coder.decode(anchors, deltas), border, head.bbox_coder)
            every.append((boxes, scores, torch.full_like(scores, float(level))))
        boxes, scores, levels = map(torch.cat, zip(*every, strict=True))
        kept = (scores >= 0) & large(boxes, config.get('min_bbox_size', -1))
        boxes, scores, levels = boxes[kept], scores[kept], levels[kept]
        return boxes[suppressed(boxes, scores, levels, config)]

    def classified(
        self, part: Any, boxes: Tensor, logits: Tensor, deltas: Tensor, border: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes of every class above the threshold, suppressed class by class."""
        config = self.model.roi_head.test_cfg
        scores = logits.softmax(-1)[:, :-1]
        classes = part.num_classes
        labels = torch.arange(classes, device=scores.device).expand_as(scores).reshape(-1)
        if part.reg_class_agnostic:
            boxes = part.bbox_coder.decode(boxes, deltas).repeat_interleave(classes, 0)
        else:
            boxes = part.bbox_coder.decode(boxes.repeat_interleave(classes, 0), deltas.reshape(-1, 4))
        boxes, scores = clipped(boxes, border, part.bbox_coder), scores.reshape(-1)
        kept = scores > config.score_thr
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        chosen = suppressed(boxes, scores, labels, config)
        return boxes[chosen], scores[chosen], labels[chosen]


class SingleStage(Detector):
    """RetinaNet, FCOS, ATSS, GFL, RTMDet, RTMDet-Ins: scores and boxes at every place of every level."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        head = model.bbox_head
        _check_type(head, tuple(DENSE_HEADS))
        if getattr(head.loss_cls, 'custom_cls_channels', False):
            raise UserError(
                f'the {type(head.loss_cls).__name__} of {type(head).__name__} has an activation of its own, which is '
                'not exported here: export the backbone (part=backbone)'
            )
        _check_nms(head.test_cfg)
        self.differs = DENSE_HEADS[type(head).__name__]

    @property
    def with_masks(self) -> bool:
        return self.differs.kernels

    def detect(self, features: Sequence[Tensor], border: Tensor) -> tuple[Tensor, ...]:
        head, config = self.model.bbox_head, self.model.bbox_head.test_cfg
        outputs = head(features)
        every: list[tuple[Tensor, ...]] = []
        for level, (logits, sides) in enumerate(zip(*outputs[:2], strict=True)):
            scores = activated(head, rows(logits, head.cls_out_channels))
            classes = scores.shape[1]
            places = priors(head, level, logits, with_stride=self.differs.kernels)
            if self.differs.integral:
                sides = head.integral(rows(sides, 4 * (head.reg_max + 1))) * head.prior_generator.strides[level][0]
                places = head.anchor_center(places)
            else:
                sides = rows(sides, head.bbox_coder.encode_size)
            extra = torch.ones_like(sides[:, :1])
            if self.differs.centerness:
                extra = rows(outputs[2][level], 1).sigmoid()
            elif self.differs.kernels:
                extra = rows(outputs[2][level], head.num_gen_params)
            numbers = torch.arange(classes, device=scores.device).expand_as(scores).reshape(-1)
            scores, labels, sides, places, extra = best(
                config.get('nms_pre', -1), scores.reshape(-1), numbers, sides, places, extra, group=classes
            )
            points = places[:, :2] if self.differs.kernels else places
            boxes = clipped(head.bbox_coder.decode(points, sides), border, head.bbox_coder)
            every.append((boxes, scores, labels, extra, places))
        boxes, scores, labels, extra, places = map(torch.cat, zip(*every, strict=True))
        kept = (scores > config.get('score_thr', 0)) & large(boxes, config.get('min_bbox_size', -1))
        boxes, scores, labels, extra, places = (each[kept] for each in (boxes, scores, labels, extra, places))
        if self.differs.centerness:
            scores = scores * extra[:, 0]
        chosen = suppressed(boxes, scores, labels, config)
        found = boxes[chosen], scores[chosen], labels[chosen]
        if not self.differs.kernels:
            return found
        return (*found, dynamic_masks(head, outputs[3][0], extra[chosen], places[chosen]))


class OwnPrediction(nn.Module):
    """What the detector itself predicts for a normalized image: the outputs of ``Detector``, masks pasted."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        from mmdet.structures import DetDataSample

        batch = padded(image, self.model.data_preprocessor)
        size, whole = tuple(image.shape[2:]), tuple(batch.shape[2:])
        meta = dict(img_shape=size, ori_shape=size, pad_shape=whole, batch_input_shape=whole, scale_factor=(1.0, 1.0))
        found = self.model.predict(batch, [DetDataSample(metainfo=meta)], rescale=True)[0].pred_instances
        outputs = found.bboxes, found.scores, found.labels
        return (*outputs, found.masks) if 'masks' in found else outputs


DETECTION_LIMITS = {'boxes': 1e-4, 'scores': 1e-4, 'labels': 0.02, 'masks': 1e-3}
"""What rounding may do: two boxes as sure as each other swap places, and one at a threshold is there or not."""


def detection_errors(
    found: Sequence[Tensor], expected: Sequence[Tensor], size: tuple[int, int], *, crops: bool, mask_threshold: float
) -> tuple[float, ...]:
    """How far detections are from others of an image of ``(H, W)``, each beside its nearest of the same label.

    Returns:
        The largest difference of a corner, as a share of the longer side; that of scores; the share of detections
        that have no partner within a pixel; and the share of pixels in which masks differ.
    """
    boxes, scores, labels = found[:3]
    far = torch.cdist(expected[0].float(), boxes.float(), p=float('inf')) + 1e6 * (expected[2][:, None] != labels[None])
    count = max(len(boxes), len(expected[0]))
    if not count:
        return (0.0,) * len(expected)
    if not far.numel():
        return (0.0, 0.0, 1.0, 0.0)[: len(expected)]
    distance, at = (far + (expected[1][:, None] - scores[None]).abs()).min(1)
    paired = distance < 1
    at, own = at[paired], paired.nonzero().squeeze(1)
    if not len(at):
        return (0.0, 0.0, 1.0, 0.0)[: len(expected)]
    errors = [
        far[own, at].max().item() / max(size),
        (expected[1][own] - scores[at]).abs().max().item(),
        1 - len(at.unique()) / count,
    ]
    if len(expected) > 3:
        masks = pasted(found[3][at], boxes[at], size, mask_threshold, crops=crops)
        errors.append((masks != expected[3][own]).float().mean().item())
    return tuple(errors)


def pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float, *, crops: bool) -> Tensor:
    """Masks as they leave a graph, ``(n, h, w)``, on an image of ``(H, W)``, as ``predict`` pastes them."""
    if crops:
        return torch.from_numpy(crops_on_image(masks.numpy(), boxes.numpy(), size, threshold))
    return torch.from_numpy(maps_on_image(masks.numpy(), size, threshold=threshold))


def padded(image: Tensor, preprocessor: Any) -> Tensor:
    """The image with its right and lower edge moved to a multiple of the preprocessor's divisor, or of 32."""
    divisor = preprocessor.pad_size_divisor if preprocessor.pad_size_divisor > 1 else STRIDE
    height, width = image.shape[-2:]
    value = preprocessor.pad_value
    return F.pad(
        image, (0, (divisor - width % divisor) % divisor, 0, (divisor - height % divisor) % divisor), value=value
    )


def rows(maps: Tensor, columns: int) -> Tensor:
    """``(1, A * columns, H, W) -> (H * W * A, columns)``, in the order of priors."""
    return maps[0].permute(1, 2, 0).reshape(-1, columns)


def priors(head: Any, level: int, maps: Tensor, *, with_stride: bool = False) -> Tensor:
    """Anchors ``(n, 4)`` or points ``(n, 2)`` of a level, of the head's own generator."""
    options = {'with_stride': True} if with_stride else {}
    return head.prior_generator.single_level_grid_priors(
        maps.shape[-2:], level_idx=level, dtype=maps.dtype, device=maps.device, **options
    )


def activated(head: Any, logits: Tensor) -> Tensor:
    """Scores of the classes of objects, without the background."""
    return logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[:, :-1]


def best(count: int, scores: Tensor, *others: Tensor, group: int = 1) -> tuple[Tensor, ...]:
    """The ``count`` highest scores and the rows of the others that belong to them; all where ``count`` is not positive.

    ``topk`` wants a constant: worthless candidates of score -1 are added, so that it never lacks any. With ``group``
    scores per row; tensors as long as the scores have a row for each.
    """
    at: Tensor | None = None
    if count > 0:
        scores, at = F.pad(scores, (0, count), value=-1.0).topk(count)
    else:
        at = torch.arange(scores.shape[0], device=scores.device)
    row = torch.div(at, group, rounding_mode='floor')
    chosen = [scores]
    for other in others:
        if other.dim() == 1:
            chosen.append(F.pad(other, (0, max(count, 0)))[at])
        else:
            chosen.append(F.pad(other, (0, 0, 0, max(count, 0)))[row])
    return tuple(chosen)


def clipped(boxes: Tensor, border: Tensor, coder: Any) -> Tensor:
    """Boxes inside of the image, unless the coder lets them reach beyond."""
    return torch.minimum(boxes.clamp(min=0), border) if getattr(coder, 'clip_border', True) else boxes


def large(boxes: Tensor, least: float) -> Tensor:
    """Which boxes are wider and higher than ``least`` pixels; all where it is negative."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return (sides[:, 0] > least) & (sides[:, 1] > least) if least >= 0 else sides[:, 0] > -torch.inf


def suppressed(boxes: Tensor, scores: Tensor, groups: Tensor, config: Any) -> Tensor:
    """Places of the boxes that non-maximum suppression within each group leaves, best first, at most the config's."""
    from torchvision.ops import nms

    if not config.nms.get('class_agnostic', False):  # groups are moved apart, by as much as mmcv does: same rounding
        span = torch.cat([boxes.new_zeros(1), boxes.reshape(-1)]).max() + 1
        boxes = boxes + (groups.to(boxes.dtype) * span)[:, None]
    return nms(boxes, scores, config.nms.iou_threshold)[: config.max_per_img]


def regions(extractor: Any, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """RoIAlign of each box on the level of its size, in the order of the boxes."""
    from torchvision.ops import roi_align

    features = features[: extractor.num_inputs]
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
    levels = extractor.map_roi_levels(rois, len(features))
    cut, order = [], []
    for level, (maps, layer) in enumerate(zip(features, extractor.roi_layers, strict=True)):
        at = (levels == level).nonzero().squeeze(1)
        size, scale, ratio = layer.output_size, layer.spatial_scale, layer.sampling_ratio
        cut.append(roi_align(maps, rois[at], size, scale, ratio, layer.aligned))
        order.append(at)
    return torch.cat(cut)[torch.cat(order).argsort()]


def dynamic_masks(head: Any, features: Tensor, kernels: Tensor, places: Tensor) -> Tensor:
    """``(n, h, w)`` logits of RTMDet-Ins: each instance's own 1x1 convolutions over coordinates and prototypes.

    mmdet runs them as one grouped convolution, and an exported graph has a constant number of groups.
    """
    size = features.shape[-2:]
    grid = head.prior_generator.single_level_grid_priors(size, level_idx=0, device=features.device)
    relative = (places[:, None, :2] - grid[None]) / (places[:, None, 2:3] * 8)
    prototypes = features.flatten(1).t()[None].expand(relative.shape[0], -1, -1)
    x = torch.cat([relative, prototypes], -1)  # (n, h * w, channels)
    count = len(head.bias_nums)
    parts = kernels.split([*head.weight_nums, *head.bias_nums], 1)  # mmdet's own split cannot do without an instance
    for index, (weight, bias) in enumerate(zip(parts[:count], parts[count:], strict=True)):
        x = x @ weight.reshape(-1, bias.shape[1], weight.shape[1] // bias.shape[1]).transpose(1, 2) + bias[:, None]
        x = x.relu() if index + 1 < count else x
    return x.reshape(-1, *size)


def _stages(parts: Any) -> list[Any]:
    if parts is None:
        return []
    return list(parts) if isinstance(parts, nn.ModuleList) else [parts]


def _of_class(part: Any, boxes: Tensor, labels: Tensor, deltas: Tensor) -> Tensor:
    """Boxes moved by the deltas of one class each."""
    if not part.reg_class_agnostic:
        deltas = deltas.gather(1, 4 * labels[:, None] + torch.arange(4, device=labels.device))
    return part.bbox_coder.decode(boxes, deltas)


def _map_of_class(part: Any, maps: Tensor, labels: Tensor) -> Tensor:
    """``(n, classes, h, w) -> (n, h, w)``."""
    if part.class_agnostic:
        return maps[:, 0]
    return maps.gather(1, labels[:, None, None, None].expand(-1, 1, *maps.shape[2:])).squeeze(1)


def _check_type(part: Any, known: Sequence[str]) -> None:
    if type(part).__name__ not in known:
        raise UserError(
            f"a '{type(part).__name__}' is not exported here: {', '.join(known)} can stand in its place, and the "
            'backbone of anything is (part=backbone)'
        )


def _check_nms(config: Any) -> None:
    if config.nms.get('type', 'nms') != 'nms':
        raise UserError(
            f"test_cfg.nms.type='{config.nms.type}' is not exported here: set it to 'nms' with --cfg-options, and test "
            'what that does to the accuracy'
        )
