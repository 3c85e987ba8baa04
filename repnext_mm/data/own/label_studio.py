"""Label Studio: its JSON export, a list of tasks with shapes in percent of the image.

Rectangles are boxes, polygons and ellipses boxes with masks; of several annotations of a task the first counts. For
brushes take Label Studio's own COCO export, whose masks are run lengths that are read as they are.
Format: https://labelstud.io/guide/export.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from repnext_mm.data.own.converted import below
from repnext_mm.data.own.drawn import (
    Drawn,
    DrawnImage,
    ImageFinder,
    Shape,
    converted,
    ellipse,
    files_of_splits,
    load_json,
    numbers_in,
    outline,
    points_in,
    rectangle,
    told,
)
from repnext_mm.data.own.fields import is_number
from repnext_mm.data.own.findings import Findings, quoted
from repnext_mm.data.own.images import is_image_name
from repnext_mm.data.own.layout import CocoSplit
from repnext_mm.data.sources import Split
from repnext_mm.errors import UserError

_KINDS = ('rectangle', 'polygon', 'ellipse')
_UPLOADED = re.compile(r'^[0-9a-f]{8}-(?=.)')  # what Label Studio puts before the name of an uploaded file


def read_label_studio(
    root: Path, files: Sequence[Path], classes: Sequence[str] | None, findings: Findings
) -> dict[Split, CocoSplit]:
    """Both splits as COCO-style annotations; tasks that nobody annotated are left out.

    Raises:
        UserError: a split cannot be told, or a file is another export.
    """
    sources = files_of_splits(files, 'Label Studio', root)
    parts: dict[Split, list[DrawnImage]] = {}
    for split, paths in sources.items():
        finder = ImageFinder(root, split)
        parts[split] = [
            image
            for path in paths
            for task in _tasks(path)
            if (image := _image(task, f'of {below(path, root)}', finder, findings)) is not None
        ]
    return converted('Label Studio', parts, sources, classes, root, findings)


def _tasks(path: Path) -> list[dict[str, Any]]:
    content = load_json(path)
    for number, task in enumerate(content if isinstance(content, list) else [content]):
        if not isinstance(task, dict) or not isinstance(task.get('data'), dict):
            raise UserError(f"'{path}' has a task without data (number {number}): export it as JSON, not as JSON-MIN")
        if not isinstance(task.get('annotations'), list):
            raise UserError(f"'{path}' has a task without the list 'annotations' (number {number}): export it as JSON")
    return list(content)


def _image(task: dict[str, Any], of_file: str, finder: ImageFinder, findings: Findings) -> DrawnImage | None:
    place = f'task {told(task.get("id"))} {of_file}'
    done = [each for each in task['annotations'] if isinstance(each, dict) and not each.get('was_cancelled')]
    if not done:
        findings.warn('tasks that nobody annotated are left out', place)
        return None
    if len(done) > 1:
        findings.warn('of several annotations of a task the first is used', place)
    names = [name for value in task['data'].values() if isinstance(value, str) and (name := _name(value))]
    found = [path for name in names if (path := finder.find(name) or finder.find(_UPLOADED.sub('', Path(name).name)))]
    if not found:
        findings.error('missing image file', f'{quoted(names) or "no name"} in {place}')
        return None
    result = done[0].get('result')
    items = [item for item in result if isinstance(item, dict)] if isinstance(result, list) else []
    size = next((each for item in items if (each := numbers_in(item, ('original_width', 'original_height')))), None)
    said = None if size is None else (int(size[0]), int(size[1]))
    return DrawnImage(found[0], list(_objects(items, place, findings)), said, place)


def _name(address: str) -> str | None:
    """The path of an image in an address: uploaded, local (``?d=PATH``), in a bucket or on the web."""
    parts = urlsplit(address)
    path = unquote((parse_qs(parts.query).get('d') or [parts.path])[0])
    return path.lstrip('/') if is_image_name(path) else None


def _objects(items: Sequence[dict[str, Any]], where: str, findings: Findings) -> Iterator[Drawn]:
    """Shape and label may stand in two items of one id."""
    joined: dict[Any, dict[str, Any]] = {}
    for number, item in enumerate(items):
        value = item.get('value')
        if item.get('type') in ('choices', 'textarea', 'rating', 'relation') or not isinstance(value, dict):
            continue
        whole = joined.setdefault(item.get('id', number), {'value': {}})
        whole['value'] |= value
        whole |= {field: content for field, content in item.items() if field != 'value'}
    for key, item in joined.items():
        place, value = f'region {told(key)} of {where}', item['value']
        if 'rle' in value or item.get('format') == 'rle':
            findings.error('a brush (RLE) is not read here: export from Label Studio as COCO, whose masks are', place)
            continue
        if 'keypointlabels' in value or item.get('type') in ('keypoint', 'keypointlabels'):
            findings.warn('key points are left out', place)
            continue
        names = [
            name
            for field, texts in value.items()
            if field.endswith('labels') and isinstance(texts, list)
            for name in texts
        ]
        size = numbers_in(item, ('original_width', 'original_height'))
        if len(names) != 1 or not isinstance(names[0], str) or not names[0].strip():
            findings.error('a region must have one label', f'{place} has {told(names)}')
        elif size is None:
            findings.error('a region must have original_width and original_height', place)
        elif item.get('image_rotation'):
            findings.error(
                'an image that was turned while annotating is not read: turn the file, annotate again', place
            )
        elif isinstance(found := _shape(value, *size), str):
            findings.error(found, f'{place} is {told(value)}')
        else:
            if value.get('rotation') and found.segmentation is None:
                findings.warn('of a turned rectangle the upright box around it is used', place)
            yield Drawn(names[0].strip(), found, place)


def _shape(value: dict[str, Any], width: float, height: float) -> Shape | str:
    """The shape in pixels, or the rule that it breaks."""
    across, down = width / 100, height / 100
    angle = math.radians(value['rotation']) if is_number(value.get('rotation')) else 0.0
    if 'points' in value:
        points = points_in(value['points'], 3)
        if points is None:
            return 'a polygon must have a list of three points or more [x, y], in percent'
        return outline([[number * (down if k % 2 else across) for k, number in enumerate(points)]])
    if oval := numbers_in(value, ('x', 'y', 'radiusX', 'radiusY')):
        return outline([ellipse(oval[0] * across, oval[1] * down, oval[2] * across, oval[3] * down, angle)])
    sides = numbers_in(value, ('x', 'y', 'width', 'height'))
    if sides is None:
        return f'a region must be a {", ".join(_KINDS)}, with numbers in percent'
    left, top, wide, high = sides[0] * across, sides[1] * down, sides[2] * across, sides[3] * down
    if not angle:
        return rectangle(left, top, wide, high)
    corners = []  # turned around its first corner
    for x, y in ((0, 0), (wide, 0), (wide, high), (0, high)):
        corners += [left + x * math.cos(angle) - y * math.sin(angle), top + x * math.sin(angle) + y * math.cos(angle)]
    return Shape(outline([corners]).box)
