"""Non-maximum suppression and box overlaps, as mmcv's operators of these names compute them on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torchvision
from torch import Tensor

LANE_POINTS = 72  # of a CLRNet lane: 5 numbers, then the x position at each of these heights


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices (K,) of the boxes (N, 4) that no better box overlaps by more than the threshold, best first."""
    if not boxes.numel():
        return torch.empty(0, dtype=torch.long, device=boxes.device)
    need_float(boxes)
    threshold = as_float32(iou_threshold)
    order = by_score(scores)
    if offset:  # torchvision has no offset, and adding it to the corners rounds differently
        boxes = boxes.cpu()
        groups = greedy(order.cpu(), lambda one, rest: overlap(boxes[one], boxes[rest], offset) > threshold)
        return torch.tensor([int(group[0]) for group in groups], dtype=torch.long).to(order.device)
    ranks = torch.arange(len(order), 0, -1, dtype=boxes.dtype, device=boxes.device)
    return order[torchvision.ops.nms(boxes[order], ranks, threshold)]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (arXiv 1704.04503): fills the first K rows of dets (N, 5), returns their indices (K,).

    Methods: 0 removes, 1 scales the score by 1 - IoU, 2 by exp(-IoU² / sigma). Overlaps count from the threshold on.
    """
    if not boxes.numel():
        return torch.empty(0, dtype=torch.long, device=boxes.device)
    for tensor in (boxes, scores, dets):
        need_float(tensor)
    all_boxes, scores = boxes.cpu(), scores.cpu().clone()
    rest = torch.arange(len(scores))
    kept: list[int] = []
    while len(rest):
        top = _first_largest(scores[rest])
        best, rest[top] = rest[top].clone(), rest[0].clone()
        rest = rest[1:]
        dets[len(kept)] = torch.cat([all_boxes[best], scores[best, None]])
        kept.append(int(best))
        iou = overlap(all_boxes[best], all_boxes[rest], offset)
        if method == 2:
            weight = torch.exp(-(iou * iou) / as_float32(sigma))
        else:
            weight = torch.where(iou >= as_float32(iou_threshold), 1 - iou if method == 1 else 0.0, 1.0)
        scores[rest] *= weight
        rest = _swapped_out(rest, ~(scores[rest] < as_float32(min_score)))
    return torch.tensor(kept, dtype=torch.long).to(boxes.device)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of indices into dets (N, 5): a kept box first, then those it suppresses (IoU >= threshold), by score."""
    need_float(dets)
    boxes, threshold = dets[:, :4].cpu(), as_float32(iou_threshold)
    order = by_score(dets[:, 4].cpu())
    return [
        group.tolist() for group in greedy(order, lambda one, rest: overlap(boxes[one], boxes[rest], 0) >= threshold)
    ]


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Fill ious, (M, N) or when aligned (M,), with IoU (mode 0) or intersection over the first box (mode 1)."""
    ious.copy_(overlap(bboxes1 if aligned else bboxes1[:, None], bboxes2, offset, of_first=mode != 0))


def line_nms_forward(boxes: Tensor, scores: Tensor, thresh: float, top_k: int) -> list[Tensor]:
    """NMS of CLRNet's lanes (N, 77): closer than thresh pixels on the heights that both cover means suppressed.

    Returns the indices (N,) with zeros after the kept ones, how many those are, and for every lane the place, from 1,
    of the last kept lane that is close to it. mmcv's own kernel compares by sorted places in one of two spots where it
    means indices; this one compares the lanes themselves.
    """
    if boxes.shape[1:] != (5 + LANE_POINTS,):
        raise RuntimeError(f'line_nms: lanes have 5 + {LANE_POINTS} numbers, but boxes is {tuple(boxes.shape)}')
    lanes, order = boxes.float(), by_score(scores)
    first = (lanes[:, 2] * (LANE_POINTS - 1) + 0.5).int()
    last = first + lanes[:, 4].int() - 1
    points = torch.arange(LANE_POINTS, device=boxes.device)
    removed = torch.zeros(len(order), dtype=torch.bool, device=boxes.device)
    parents = torch.zeros_like(order)
    kept: list[int] = []
    for place, lane in enumerate(order.tolist()):
        if removed[place]:
            continue
        later = order[place + 1 :]
        start = torch.maximum(first[lane], first[later])
        end = torch.minimum(last[lane], last[later]).clamp(max=LANE_POINTS - 1)
        common = (points >= start[:, None]) & (points <= end[:, None])
        apart = ((lanes[lane, 5:] - lanes[later, 5:]).abs() * common).sum(1)
        close = (end >= start) & (start >= 0) & (apart < thresh * (end - start + 1))
        kept.append(lane)
        removed[place + 1 :] |= close
        parents[later[close]] = parents[lane] = len(kept)
        if len(kept) == top_k:
            break
    keep = torch.zeros_like(order)
    keep[: len(kept)] = torch.tensor(kept, dtype=torch.long, device=order.device)
    return [keep, torch.tensor(len(kept), device=order.device), parents]


def overlap(first: Tensor, second: Tensor, offset: int, *, of_first: bool = False) -> Tensor:
    """IoU of boxes that broadcast, in the order of operations of the compiled operators, which decides equal ones."""
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2]) + offset
    inter, area1, area2 = (
        size[..., 0] * size[..., 1]
        for size in (sides.clamp(min=0), *(box[..., 2:] - box[..., :2] + offset for box in (first, second)))
    )
    return inter / (area1 if of_first else area1 + area2 - inter)


def greedy(order: Tensor, suppresses: Callable[[Tensor, Tensor], Tensor]) -> Iterator[Tensor]:
    """Groups of indices: the first that is left, then those of the rest that it suppresses."""
    while len(order):
        one, rest = order[0], order[1:]
        gone = suppresses(one, rest)
        yield torch.cat([order[:1], rest[gone]])
        order = rest[~gone]


def by_score(scores: Tensor) -> Tensor:
    """Best first. Not by a stable sort: equal scores stand in the order that the compiled operators give them, too."""
    return scores.sort(0, descending=True).indices


def need_float(tensor: Tensor) -> None:
    """The compiled operators read these as C floats, and refuse all else in the same words."""
    if tensor.dtype != torch.float32:
        raise RuntimeError(f'expected scalar type Float but found {str(tensor.dtype).removeprefix("torch.")}')


def as_float32(number: float) -> float:
    """The operators take C floats: 0.6 is 0.60000002 there, and an IoU of 3/5 does not exceed it."""
    return float(torch.tensor(number, dtype=torch.float32))


def _first_largest(scores: Tensor) -> int:
    if scores[0].isnan():  # nothing compares greater
        return 0
    return int(scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).argmax())


def _swapped_out(rest: Tensor, alive: Tensor) -> Tensor:
    """Without the dead, whose places the last ones take: the order decides between equal scores later."""
    count = int(alive.sum())
    holes = (~alive[:count]).nonzero().flatten()
    rest[holes] = (rest[count:][alive[count:]]).flip(0)
    return rest[:count]
