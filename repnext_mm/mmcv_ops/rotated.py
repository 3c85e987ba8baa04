"""Overlaps and suppression of rotated boxes (x, y, width, height, radians)."""

from __future__ import annotations

import torch
from torch import Tensor

from repnext_mm.mmcv_ops.suppression import as_float32, by_score, greedy, need_float

PAIRS_AT_ONCE = 1 << 18  # some 200 MB
ROUNDING = 1e-9  # a corner on an edge counts as inside, whichever way float64 rounds it


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Fill ious, (M * N,) or when aligned (M,), with IoU (mode 0) or intersection over the first box (mode 1)."""
    for tensor in (boxes1, boxes2):
        need_float(tensor)
    if aligned:
        ious.copy_(_overlap(boxes1, boxes2, mode_flag))
        return
    rows = max(1, PAIRS_AT_ONCE // max(1, len(boxes2)))
    for start in range(0, len(boxes1), rows):
        part = _overlap(boxes1[start : start + rows, None], boxes2, mode_flag)
        ious.view(len(boxes1), len(boxes2))[start : start + rows] = part


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: int,
) -> Tensor:
    """Indices of the boxes (N, 5) that no better box overlaps by the threshold or more, best first.

    Labels are not looked at, nor are they by the compiled operator.
    """
    if dets.dtype not in (torch.float32, torch.float64):
        raise NotImplementedError(f'nms_rotated is not implemented for {dets.dtype}: pass float32 or float64')
    if not dets.numel():
        return torch.empty(0, dtype=torch.long, device=dets.device)
    threshold = as_float32(iou_threshold)

    def suppresses(one: Tensor, rest: Tensor) -> Tensor:
        return _overlap(dets[one, :5], dets[rest, :5], 0).to(dets.dtype) >= threshold

    groups = greedy(by_score(scores), suppresses)
    return torch.stack([group[0] for group in groups])


def _overlap(first: Tensor, second: Tensor, mode: int) -> Tensor:
    """In float64: the compiled operator's float32 is off by 1e-5 and, for edges on one line, by whole corners."""
    first, second = torch.broadcast_tensors(first.double(), second.double())
    middle = (first[..., :2] + second[..., :2]) / 2
    corners = [_corners(box, middle) for box in (first, second)]
    area1, area2 = (box[..., 2] * box[..., 3] for box in (first, second))
    inter = _intersection(*corners)
    ratio = inter / (area1 + area2 - inter if mode == 0 else area1)
    return torch.where((area1 < 1e-14) | (area2 < 1e-14), 0.0, ratio)


def _corners(box: Tensor, origin: Tensor) -> Tensor:
    """(..., 4, 2), in order round the box."""
    cos, sin = box[..., 4].cos(), box[..., 4].sin()
    along = torch.stack([cos, sin], -1) * box[..., 2, None] / 2
    across = torch.stack([-sin, cos], -1) * box[..., 3, None] / 2
    center = box[..., :2] - origin
    return torch.stack(
        [center - along - across, center + along - across, center + along + across, center - along + across], -2
    )


def _intersection(first: Tensor, second: Tensor) -> Tensor:
    """Area of the convex polygon whose corners are the crossings of edges and the corners inside the other box."""
    edges1, edges2 = (corners.roll(-1, -2) - corners for corners in (first, second))
    apart = second[..., None, :, :] - first[..., :, None, :]
    turn = _cross(edges2[..., None, :, :], edges1[..., :, None, :])
    parallel = turn.abs() <= 1e-14
    turn = torch.where(parallel, 1.0, turn)
    along1 = _cross(edges2[..., None, :, :], apart) / turn
    along2 = _cross(edges1[..., :, None, :], apart) / turn
    crossing = ~parallel & _in_unit(along1) & _in_unit(along2)
    crossings = first[..., :, None, :] + along1[..., None] * edges1[..., :, None, :]
    points = torch.cat([crossings.flatten(-3, -2), first, second], -2)
    real = torch.cat([crossing.flatten(-2), _inside(first, second, edges2), _inside(second, first, edges1)], -1)

    center = (points * real[..., None]).sum(-2, keepdim=True) / real.sum(-1).clamp(min=1)[..., None, None]
    points = torch.where(real[..., None], points - center, 0.0)
    angles = torch.where(real, torch.atan2(points[..., 1], points[..., 0]), torch.inf)
    order = angles.argsort(-1)
    points = points.gather(-2, order[..., None].expand_as(points))
    count = real.sum(-1, keepdim=True)
    places = torch.arange(points.shape[-2], device=points.device)
    following = torch.where(places + 1 < count, places + 1, 0)  # the last real one closes the polygon
    after = points.gather(-2, following[..., None].expand_as(points))
    return (_cross(points, after) * (places < count)).sum(-1).abs() / 2


def _inside(points: Tensor, corners: Tensor, edges: Tensor) -> Tensor:
    """Whether each of (..., 4, 2) projects into both sides of the box."""
    offset = points - corners[..., :1, :]
    result = torch.ones_like(offset[..., 0], dtype=torch.bool)
    for side in (edges[..., :1, :], -edges[..., 3:, :]):
        result &= _in_unit((offset * side).sum(-1) / (side * side).sum(-1))
    return result


def _in_unit(part: Tensor) -> Tensor:
    return (part >= -ROUNDING) & (part <= 1 + ROUNDING)


def _cross(first: Tensor, second: Tensor) -> Tensor:
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
