"""Checks of COCO-style annotations: what mmdet would trip over, leave out silently, or learn wrongly."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from repnext_mm.datasets.check.findings import Findings
from repnext_mm.datasets.check.layout import CocoSplit
from repnext_mm.datasets.check.pictures import seen_size
from repnext_mm.datasets.sources import Split

SMALLEST = 32  # pixels: mmdet leaves smaller pictures out of training


class CocoFacts(NamedTuple):
    """What a config needs to know."""

    classes: tuple[str, ...]  # in the order of the categories: mmdet numbers them so, whatever `classes` says
    masks: bool  # False: boxes only
    pictures: int  # to train on


def check_coco(splits: Mapping[Split, CocoSplit], classes: Sequence[str] | None, findings: Findings) -> CocoFacts:
    """Check both splits against each other, against ``classes`` (None: all categories) and against the files."""
    names = _class_names(splits, classes, findings)
    masks = any(bool(box.get('segmentation')) for part in splits.values() for box in part.content['annotations'])
    for split, part in splits.items():
        pictures = _check_pictures(split, part, findings)
        _check_boxes(split, part, pictures, names, masks, findings)
    return CocoFacts(names, masks, len(splits['train'].content['images']))


def _class_names(
    splits: Mapping[Split, CocoSplit], classes: Sequence[str] | None, findings: Findings
) -> tuple[str, ...]:
    listed: dict[Split, list[str]] = {}
    for split, part in splits.items():
        categories = part.content['categories']
        listed[split] = [str(category.get('name')) for category in categories]
        for key in ('id', 'name'):
            for value, count in Counter(category.get(key) for category in categories).items():
                if count > 1 or value is None:
                    findings.error(f'a category needs {key} of its own', f'{key} {value!r} of {split}')
    known = listed['train']
    for name in classes or ():
        if name not in known:
            findings.error(f'--classes names what the annotations do not have ({", ".join(known)})', f"'{name}'")
    names = tuple(name for name in known if classes is None or name in classes)
    if classes is not None and set(classes) == set(names) and tuple(classes) != names:
        findings.warn('mmdet numbers classes in the order of the categories, and so does the config', ', '.join(names))
    for name in known:
        if name not in names:
            findings.warn('boxes of a category that is not in --classes are left out', f"'{name}'")
    if (other := tuple(name for name in listed['val'] if name in names)) != names:
        findings.error(
            'both splits must list the same categories in the same order, or labels mean different classes',
            f'train has {", ".join(names)}; val has {", ".join(other)}',
        )
    return names


def _check_pictures(split: Split, part: CocoSplit, findings: Findings) -> dict[Any, dict[str, Any]]:
    """The usable records by id."""
    found: dict[Any, dict[str, Any]] = {}
    for record in part.content['images']:
        place = f"'{record.get('file_name', record)}' of {split}"
        sides = (record.get('width'), record.get('height'))
        if not {'id', 'file_name'} <= record.keys() or not all(_is_number(side) for side in sides):
            findings.error('a picture needs id, file_name, height and width', place)
            continue
        if record['id'] in found:
            findings.error('duplicate picture id', f'{record["id"]} of {split}')
        found[record['id']] = record
        path, size = part.pictures / record['file_name'], (record['width'], record['height'])
        if not path.is_file():
            findings.error('missing picture file', place)
        elif (seen := seen_size(path)) is None:
            findings.error('file is no picture', place)
        elif seen != size:
            turned = ' (turned by EXIF: boxes must fit the turned picture)' if seen == size[::-1] else ''
            findings.error(
                "width and height differ from the file's",
                f'{place} is {seen[0]}x{seen[1]}, not {size[0]}x{size[1]}{turned}',
            )
        if split == 'train' and min(size) < SMALLEST:
            findings.warn(f'training leaves out pictures below {SMALLEST} pixels', place)
    return found


def _check_boxes(
    split: Split,
    part: CocoSplit,
    pictures: Mapping[Any, dict[str, Any]],
    names: tuple[str, ...],
    masks: bool,
    findings: Findings,
) -> None:
    categories = {category.get('id'): str(category.get('name')) for category in part.content['categories']}
    seen: set[Any] = set()
    per_class: Counter[str] = Counter()
    with_boxes: set[Any] = set()
    for box in part.content['annotations']:
        place = f'annotation {box.get("id")} of {split}'
        if box.get('id') is None or box['id'] in seen:
            findings.error('duplicate or absent annotation id', place)
        seen.add(box.get('id'))
        picture, name = pictures.get(box.get('image_id')), categories.get(box.get('category_id'))
        if name is None:
            findings.error('unknown category id', f'{box.get("category_id")} in {place}')
        if picture is None:
            findings.error('unknown picture id', f'{box.get("image_id")} in {place}')
        elif name in names:
            with_boxes.add(box['image_id'])
            if _check_box(box, picture, place, findings):
                per_class[str(name)] += 1
            if masks:
                _check_mask(box.get('segmentation'), picture, place, findings)
    for name in names:
        if not per_class[name]:
            findings.warn('class without boxes', f"'{name}' in {split}")
    empty = len(pictures) - len(with_boxes)
    if empty and split == 'train':
        findings.warn('training leaves out pictures without boxes', f'{empty} of {len(pictures)}')
    if not with_boxes:
        findings.error('no box of any class', split)
    kind = 'boxes with masks' if masks else 'boxes (no masks)'
    findings.counts.append(
        f'{split}: {len(pictures)} pictures in {part.pictures}, {per_class.total()} {kind} of {len(names)} classes '
        f'in {part.annotations}'
    )


def _check_box(box: Mapping[str, Any], picture: Mapping[str, Any], place: str, findings: Findings) -> bool:
    """Whether mmdet would use it."""
    sides = box.get('bbox')
    if not isinstance(sides, list) or len(sides) != 4 or not all(_is_number(side) for side in sides):
        findings.error('bbox must be four numbers [x, y, width, height]', f'{place} has {sides}')
        return False
    if not _is_number(box.get('area')):
        findings.error('area is missing (the pixels of the mask, or width x height of the box)', place)
        return False
    x, y, width, height = sides
    place = f"{place}, {sides} in '{picture['file_name']}' ({picture['width']}x{picture['height']})"
    if width < 1 or height < 1 or box['area'] <= 0:
        findings.error('empty box (a side below one pixel, or no area)', place)
        return False
    if x >= picture['width'] or y >= picture['height'] or x + width <= 0 or y + height <= 0:
        findings.error('box outside its picture', place)
        return False
    if x < -1 or y < -1 or x + width > picture['width'] + 1 or y + height > picture['height'] + 1:
        findings.warn('box sticks out of its picture; bbox is [x, y, width, height], not two corners', place)
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _check_mask(mask: Any, picture: Mapping[str, Any], place: str, findings: Findings) -> None:
    if not mask:
        findings.error('mask is missing, and other boxes have one', place)
        return
    if isinstance(mask, dict):
        size = [picture['height'], picture['width']]
        if mask.get('size') != size:
            findings.error('run-length mask of another size', f'{place} has {mask.get("size")}, not {size}')
            return
        area = _run_length_area(mask)
    else:
        area = sum(_polygon_area(polygon) for polygon in mask if isinstance(polygon, list))
    if area <= 0:
        findings.error('empty mask (no pixel, or no polygon of three points)', place)


def _run_length_area(mask: Mapping[str, Any]) -> float:
    counts = mask.get('counts')
    if isinstance(counts, list):  # uncompressed: runs of zeros and ones in turn
        return float(sum(counts[1::2]))
    from pycocotools import mask as coco_mask

    try:
        return float(coco_mask.area(dict(mask)))
    except (KeyError, TypeError, ValueError):
        return 0.0


def _polygon_area(polygon: Sequence[float]) -> float:
    """By the shoelace formula; 0 for what mmdet drops: fewer than three points, or half a point."""
    if len(polygon) < 6 or len(polygon) % 2 or not all(_is_number(value) for value in polygon):
        return 0.0
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    pairs = zip(points, points[1:] + points[:1], strict=True)
    return abs(sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in pairs)) / 2
