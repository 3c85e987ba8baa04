"""VGG Image Annotator (VIA) 1 and 2: one JSON file with the regions of all images of a split.

Rectangles are boxes; polygons, circles and ellipses are boxes with masks; points and lines are left out. The class is
the one attribute that regions have, or the one called class, label, name, type, category or object.
Format: https://www.robots.ox.ac.uk/~vgg/software/via.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
from repnext_mm.data.own.findings import Findings, quoted
from repnext_mm.data.own.layout import CocoSplit
from repnext_mm.data.sources import Split
from repnext_mm.errors import UserError

_CLASS = ('class', 'label', 'name', 'type', 'category', 'object')
_WITHOUT_AREA = ('point', 'polyline', 'line')
_KEYS = {
    'rect': ('x', 'y', 'width', 'height'),
    'circle': ('cx', 'cy', 'r'),
    'ellipse': ('cx', 'cy', 'rx', 'ry'),
}


def read_via(
    root: Path, files: Sequence[Path], classes: Sequence[str] | None, findings: Findings
) -> dict[Split, CocoSplit]:
    """Both splits as COCO-style annotations; an image without regions has no objects.

    Args:
        root: the folder with all of the data.
        files: those of VIA below it.
        classes: where regions have no attributes (one class), its name.
        findings: what is wrong in single regions.

    Raises:
        UserError: a split cannot be told, a file is not VIA's, or nothing names the classes.
    """
    sources = files_of_splits(files, 'VIA', root)
    for split, paths in sources.items():
        if len(paths) > 1:
            named = quoted(below(path, root) for path in paths)
            raise UserError(
                f"'{root}' has several files of VIA for '{split}' ({named}): keep one, move the others away"
            )
    entries = {split: _entries(path) for split, (path,) in sources.items()}
    attribute = _attribute([entry for part in entries.values() for entry in part], classes, root)
    parts: dict[Split, list[DrawnImage]] = {}
    for split, part in entries.items():
        finder, (path,) = ImageFinder(root, split), sources[split]
        parts[split] = []
        for entry in part:
            name = str(entry['filename'])
            place = f"'{name}' of {below(path, root)}"
            image = finder.find(name, beside=path.parent)
            if image is None:
                findings.error('missing image file', f'{place} ({split})')
                continue
            objects = list(_objects(entry, attribute, classes, place, findings))
            parts[split].append(DrawnImage(image, objects, None, place))
    return converted('VIA', parts, sources, classes, root, findings)


def _entries(path: Path) -> list[dict[str, Any]]:
    """The images of a project (.json) or of exported annotations."""
    content = load_json(path)
    if isinstance(content, dict) and '_via_img_metadata' in content:
        content = content['_via_img_metadata']
    if not isinstance(content, dict):
        raise UserError(f"'{path}' is not a file of VIA: export the annotations as JSON, or save the project")
    for key, entry in content.items():
        sound = isinstance(entry, dict) and isinstance(entry.get('filename'), str) and entry['filename']
        if not sound or not isinstance(entry.get('regions'), list | dict):
            raise UserError(
                f"'{path}' has an entry '{told(key)}' without filename and regions: export it as JSON again"
            )
    return list(content.values())


def _regions(entry: dict[str, Any]) -> list[Any]:
    regions = entry['regions']
    return list(regions.values()) if isinstance(regions, dict) else regions  # VIA 1 numbers them


def _attribute(entries: list[dict[str, Any]], classes: Sequence[str] | None, root: Path) -> str | None:
    """What holds the class; None where nothing does, and ``classes`` names the one there is."""
    regions = [region for entry in entries for region in _regions(entry) if isinstance(region, dict)]
    found = {
        name: None
        for region in regions
        if isinstance(attributes := region.get('region_attributes'), dict)
        for name in attributes
    }
    if not found:
        if classes is None or len(classes) != 1:
            raise UserError(
                f"'{root}' has regions of VIA without attributes: give the name of their one class with --classes"
            )
        return None
    if len(found) == 1:
        return next(iter(found))
    named = {name.lower(): name for name in found}
    chosen = next((named[name] for name in _CLASS if name in named), None)
    if chosen is None:
        raise UserError(
            f"'{root}' has regions of VIA with several attributes ({quoted(found)}): call the one that is the class "
            "'label'"
        )
    return chosen


def _objects(
    entry: dict[str, Any], attribute: str | None, classes: Sequence[str] | None, where: str, findings: Findings
) -> Iterator[Drawn]:
    for number, region in enumerate(_regions(entry), start=1):
        place = f'region {number} of {where}'
        shape = region.get('shape_attributes') if isinstance(region, dict) else None
        kind = shape.get('name') if isinstance(shape, dict) else None
        if kind in _WITHOUT_AREA:
            findings.warn('regions that are points or lines are left out', f'{kind} {place}')
            continue
        name = classes[0] if attribute is None and classes else _class(region, attribute)
        if name is None:
            attributes = region.get('region_attributes') if isinstance(region, dict) else region
            findings.error(f"a region must name one class in '{attribute}'", f'{place} has {told(attributes)}')
            continue
        found = _shape(kind, shape)
        if isinstance(found, str):
            findings.error(found, f'{place} is {told(shape)}')
        else:
            yield Drawn(name, found, place)


def _class(region: Any, attribute: str | None) -> str | None:
    """A text, or the one box that is checked."""
    attributes = region.get('region_attributes') if isinstance(region, dict) else None
    value = attributes.get(attribute) if isinstance(attributes, dict) else None
    if isinstance(value, dict):
        checked = [name for name, on in value.items() if on]
        value = checked[0] if len(checked) == 1 else None
    return value.strip() or None if isinstance(value, str) else None


def _shape(kind: Any, shape: Any) -> Shape | str:
    """The shape, or the rule that it breaks."""
    if kind == 'polygon':
        xs, ys = shape.get('all_points_x'), shape.get('all_points_y')
        sound = isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys)
        points = points_in([list(pair) for pair in zip(xs, ys, strict=True)], 3) if sound else None
        return (
            'a polygon must have all_points_x and all_points_y, three numbers or more'
            if points is None
            else outline([points])
        )
    if kind not in _KEYS:
        return 'a region must be a rect, polygon, circle or ellipse'
    values = numbers_in(shape, _KEYS[kind])
    if values is None:
        return f'a {kind} must have the numbers {", ".join(_KEYS[kind])}'
    if kind == 'rect':
        return rectangle(*values)
    if kind == 'circle':
        return outline([ellipse(values[0], values[1], values[2], values[2])])
    (angle,) = numbers_in(shape, ('theta',)) or [0.0]
    x, y, width, height = values
    return outline([ellipse(x, y, width, height, angle)])
