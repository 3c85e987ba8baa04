"""labelme: one .json file per image, beside it or elsewhere, with shapes in pixels.

Rectangles are boxes; polygons, circles and masks are boxes with masks. Shapes with one label and one ``group_id`` are
one object. Points and lines have no area and are left out. Sizes are those of the image files as training sees them.
Format: https://github.com/wkentaro/labelme (its example files; version 5).
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
    outline,
    points_in,
    rectangle,
    told,
)
from repnext_mm.data.own.fields import is_number
from repnext_mm.data.own.findings import Findings
from repnext_mm.data.own.images import is_image_name
from repnext_mm.data.own.layout import CocoSplit, files_in
from repnext_mm.data.sources import Split
from repnext_mm.errors import UserError

_WITHOUT_AREA = ('line', 'linestrip', 'point', 'points')
_IGNORED = '__ignore__'  # of labelme's own converters


def read_labelme(
    root: Path, files: Sequence[Path], classes: Sequence[str] | None, findings: Findings
) -> dict[Split, CocoSplit]:
    """Both splits as COCO-style annotations, told by the names of folders.

    Raises:
        UserError: a split cannot be told.
    """
    sources = files_of_splits(files, 'labelme', root)
    parts: dict[Split, list[DrawnImage]] = {}
    for split, paths in sources.items():
        finder = ImageFinder(root, split)
        parts[split] = [image for path in paths if (image := _image(path, finder, root, split, findings))]
        used = {image.path for image in parts[split]}
        for folder in sorted({path.parent for path in used}):
            for path in files_in(folder):
                if is_image_name(path) and path not in used and not path.with_suffix('.json').is_file():
                    findings.warn('image without a .json file is left out', f"'{below(path, root)}' of {split}")
    return converted('labelme', parts, sources, classes, root, findings)


def _image(path: Path, finder: ImageFinder, root: Path, split: Split, findings: Findings) -> DrawnImage | None:
    where = f"'{below(path, root)}' of {split}"
    try:
        content = load_json(path)
    except UserError as error:
        findings.error('file cannot be read', str(error))
        return None
    shapes = content.get('shapes') if isinstance(content, dict) else None
    name = content.get('imagePath') if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not isinstance(name, str) or not name:
        findings.error("a file of labelme must have the list 'shapes' and the text 'imagePath'", where)
        return None
    image = finder.find(name, beside=path.parent)
    if image is None:
        inside = ' (it is in the file itself, as imageData: write it to a file)' if content.get('imageData') else ''
        findings.error(f'missing image file{inside}', f"'{name}' of {where}")
        return None
    width, height = content.get('imageWidth'), content.get('imageHeight')
    said = (int(width), int(height)) if is_number(width) and is_number(height) else None
    return DrawnImage(image, _objects(shapes, said, below(path, root), findings), said, where)


def _objects(shapes: list[Any], size: tuple[int, int] | None, file: str, findings: Findings) -> list[Drawn]:
    objects: list[Drawn] = []
    groups: dict[tuple[str, Any], int] = {}
    for number, shape in enumerate(shapes, start=1):
        place = f"shape {number} of '{file}'"
        label = shape.get('label') if isinstance(shape, dict) else None
        if not isinstance(label, str) or not label.strip():
            findings.error('a shape must have a label (text)', f'{place} is {told(shape)}')
            continue
        kind = shape.get('shape_type') or 'polygon'  # of files before version 4
        if kind in _WITHOUT_AREA or label == _IGNORED:
            findings.warn(
                f'shapes that are points or lines, or are labeled {_IGNORED}, are left out', f'{kind} {place}'
            )
            continue
        found = _shape(kind, shape, size)
        if isinstance(found, str):
            findings.error(found, place)
            continue
        group = shape.get('group_id')
        key = (label, group)
        if group is not None and key in groups and isinstance(found.segmentation, list):
            before = objects[groups[key]]
            if isinstance(before.shape.segmentation, list):
                joined = outline([*before.shape.segmentation, *found.segmentation])
                objects[groups[key]] = before._replace(shape=joined)
                continue
        groups.setdefault(key, len(objects))
        objects.append(Drawn(label.strip(), found, place))
    return objects


def _shape(kind: str, shape: dict[str, Any], size: tuple[int, int] | None) -> Shape | str:
    """The shape, or the rule that it breaks."""
    if kind not in ('polygon', 'rectangle', 'circle', 'mask'):
        return f'shape_type {told(kind)} is unknown: polygon, rectangle, circle and mask are read'
    points = points_in(shape.get('points'), 3 if kind == 'polygon' else 2)
    if points is None:
        return f'a {kind} must have a list of {"three points or more" if kind == "polygon" else "two points"} [x, y]'
    if kind == 'polygon':
        return outline([points])
    left, top, right, bottom = points[:4]
    if kind == 'rectangle':
        return rectangle(left, top, right - left, bottom - top)
    if kind == 'circle':  # center and a point on it
        radius = math.hypot(right - left, bottom - top)
        return outline([ellipse(left, top, radius, radius)])
    return _mask(shape.get('mask'), int(min(left, right)), int(min(top, bottom)), size)


def _mask(encoded: Any, left: int, top: int, size: tuple[int, int] | None) -> Shape | str:
    """A PNG in base64 that starts at a corner of the object's box."""
    from PIL import Image
    from pycocotools import mask as coco_mask

    if size is None:
        return 'a mask needs imageWidth and imageHeight'
    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as image:
            cut = np.array(image.convert('L')) > 0
    except (OSError, SyntaxError, TypeError, ValueError, binascii.Error, Image.DecompressionBombError):
        return "a mask must be a PNG in base64 under 'mask'"
    whole = np.zeros((size[1], size[0]), np.uint8, order='F')
    height, width = whole[max(top, 0) : max(top, 0) + cut.shape[0], max(left, 0) : max(left, 0) + cut.shape[1]].shape
    whole[max(top, 0) : max(top, 0) + height, max(left, 0) : max(left, 0) + width] = cut[:height, :width]
    runs = coco_mask.encode(whole)
    box = tuple(map(float, coco_mask.toBbox(runs)))
    return Shape(box, {'size': runs['size'], 'counts': runs['counts'].decode()}, float(whole.sum()))  # type: ignore[arg-type]
