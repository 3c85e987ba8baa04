"""Checks of the masks in COCO-style annotations, for mmdet's loading and for pycocotools' scoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from repnext_mm.data.own.findings import Findings, value_text

_BOXES_ONLY = 'or give --boxes-only to train on the boxes alone'


def has_mask(segmentation: Any) -> bool:
    """Whether there is anything: null, [], {} and [[]] are not masks."""
    return any(segmentation) if isinstance(segmentation, list) else bool(segmentation)


def check_mask(segmentation: Any, image: Mapping[str, Any], place: str, findings: Findings, *, scored: bool) -> None:
    """Check one mask whose field is sound (see ``fields``); ``scored``: pycocotools will read it."""
    if not has_mask(segmentation):
        findings.error(f'mask is missing, and other boxes have one: add it, {_BOXES_ONLY}', place)
    elif isinstance(segmentation, dict):
        _check_run_length(segmentation, image, place, findings)
    else:
        _check_polygons(segmentation, image, place, findings, scored=scored)


def _check_polygons(
    polygons: list[list[float]], image: Mapping[str, Any], place: str, findings: Findings, *, scored: bool
) -> None:
    kept = [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]  # as mmdet does
    width, height = image['width'], image['height']
    far = (
        value
        for polygon in kept
        for values, side in ((polygon[::2], width), (polygon[1::2], height))
        for value in values
        if not -side <= value <= 2 * side
    )
    if (value := next(far, None)) is not None:
        findings.error('polygon lies far outside its image', f'{place} has {value_text(value)}')
    elif not any(map(polygon_area, kept)):
        findings.error(f'empty mask (no polygon of three points with an area): remove the box, {_BOXES_ONLY}', place)
    elif scored and len(polygons[0]) < 6:  # pycocotools tells what all of them are from the first
        findings.error(f'the first polygon has fewer than three points: remove it, {_BOXES_ONLY}', place)
    elif len(kept) < len(polygons):
        findings.warn('training leaves out polygons of fewer than three points, or with half a point', place)
    elif scored and any(isinstance(side, float) for side in (width, height)):
        findings.error('with masks, width and height must be written without a decimal point', place)


def _check_run_length(mask: Mapping[str, Any], image: Mapping[str, Any], place: str, findings: Findings) -> None:
    size = [image['height'], image['width']]
    if mask['size'] != size:
        findings.error('run-length mask of another size', f'{place} has {mask["size"]}, not [height, width] {size}')
        return
    counts = mask['counts']
    runs = counts if isinstance(counts, list) else _runs(counts)
    if any(run < 0 for run in runs) or sum(runs) != size[0] * size[1]:
        findings.error('run-length mask does not fill its size, which pycocotools does not notice', place)
    elif not sum(runs[1::2]):
        findings.error(f'empty mask (no pixel): remove the box, {_BOXES_ONLY}', place)


def _runs(counts: str) -> list[int]:
    """Runs of zeros and ones in turn, from COCO's compressed text: six bits a sign, differences from the third on."""
    runs: list[int] = []
    value = shift = 0
    for sign in counts:
        bits = ord(sign) - 48
        if not 0 <= bits < 64:
            return []
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last sign of a number; its fifth bit is the number's own sign
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return [] if shift else runs


def polygon_area(polygon: Sequence[float]) -> float:
    """Pixels inside ``[x1, y1, x2, y2, ...]``, by the shoelace formula."""
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    pairs = zip(points, points[1:] + points[:1], strict=True)
    return abs(sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in pairs)) / 2
