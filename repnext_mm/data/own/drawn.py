"""Objects that a person drew on images, as labelme, VIA and Label Studio keep them in JSON, on their way to COCO.

No library reads them here: globox knows boxes only, and supervision reads COCO, YOLO and Pascal VOC; a person wants to
hear of every fault by file and place.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, get_args

from repnext_mm.data.own.converted import Conversion, below, common_folder, readable_sizes
from repnext_mm.data.own.fields import is_number
from repnext_mm.data.own.findings import Findings, quoted, shortened, value_text
from repnext_mm.data.own.images import is_image_name
from repnext_mm.data.own.layout import SPLIT_RULE, CocoSplit, files_in, folders_below, of_split
from repnext_mm.data.own.masks import polygon_area
from repnext_mm.data.sources import Split
from repnext_mm.errors import UserError

Tool = Literal['labelme', 'VIA', 'Label Studio']
_PEEKED = 1 << 16  # bytes of a file that tell whose it is
_CORNERS = 64  # of the polygon for a circle: its area is right to 0.2 %


class Shape(NamedTuple):
    """Where an object is, in pixels."""

    box: tuple[float, float, float, float]  # x, y, width, height
    segmentation: list[list[float]] | dict[str, Any] | None = None
    area: float | None = None  # None: of the box


class Drawn(NamedTuple):
    """One object, and the place in the user's file where it stands."""

    name: str
    shape: Shape
    place: str


class DrawnImage(NamedTuple):
    """An image and its objects; ``said``: the ``(width, height)`` that the annotations give, if any."""

    path: Path
    objects: list[Drawn]
    said: tuple[int, int] | None
    place: str


def tool_of(path: Path) -> Tool | None:
    """Whose file it is, by how it starts; None if it may be COCO-style or anything else."""
    try:
        with path.open('rb') as file:
            start = file.read(_PEEKED).decode('utf-8', 'replace').lstrip('\ufeff \t\r\n')
    except OSError:
        return None
    keys = set(re.findall(r'"(\w+)"\s*:', start))
    if start.startswith('['):
        return 'Label Studio' if keys & {'annotations', 'completions', 'annotation_id', 'rectanglelabels'} else None
    if 'shapes' in keys and keys & {'flags', 'version', 'imagePath'}:
        return 'labelme'
    if any(key.startswith('_via_') for key in keys) or {'filename', 'regions'} <= keys:
        return 'VIA'
    return None


def load_json(path: Path) -> Any:
    """The content of a file.

    Raises:
        UserError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding='utf-8-sig'))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}): give read access to it") from error
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not UTF-8 (at byte {error.start}): save it as UTF-8") from error
    except ValueError as error:
        raise UserError(f"'{path}' is not JSON ({error}): export the annotations again") from error
    except RecursionError as error:
        raise UserError(f"'{path}' has lists that are nested too deeply: export the annotations again") from error


def files_of_splits(files: Sequence[Path], tool: Tool, root: Path) -> dict[Split, list[Path]]:
    """The files of each split, told by names.

    Raises:
        UserError: a split has none.
    """
    found: dict[Split, list[Path]] = {}
    split: Split
    for split in get_args(Split):
        found[split] = sorted(of_split(files, split, root))
        if not found[split]:
            held = quoted(below(path, root) for path in files)
            raise UserError(
                f"'{root}' has {len(files)} .json file{'s' * (len(files) > 1)} of {tool} ({held}), and none is named "
                f"as the split '{split}': {SPLIT_RULE}"
            )
    return found


class ImageFinder:
    """Looks up images by the names that annotations give them, wherever the annotator's own folders were."""

    def __init__(self, root: Path, split: Split) -> None:
        paths = [path for folder in folders_below(root) for path in files_in(folder) if is_image_name(path)]
        self._named: dict[str, list[Path]] = {}
        preferred = set(of_split(paths, split, root))
        for path in sorted(paths, key=lambda path: (path not in preferred, path)):
            self._named.setdefault(path.name, []).append(path)

    def find(self, name: str, *, beside: Path | None = None) -> Path | None:
        """The image whose path ends most like ``name``; one in the folder ``beside`` or of the split first."""
        parts = PurePosixPath(name.replace('\\', '/')).parts
        if not parts:
            return None
        if beside is not None and os.path.isfile(path := Path(os.path.normpath(beside.joinpath(*parts)))):
            return path
        candidates = self._named.get(parts[-1], [])

        def rank(path: Path) -> tuple[int, bool]:
            ends = zip(reversed(path.parts), reversed(parts), strict=False)
            return next((k for k, (one, other) in enumerate(ends) if one != other), len(parts)), path.parent == beside

        return max(candidates, key=rank, default=None)


def converted(
    tool: Tool,
    parts: Mapping[Split, Sequence[DrawnImage]],
    sources: Mapping[Split, Sequence[Path]],
    classes: Sequence[str] | None,
    root: Path,
    findings: Findings,
) -> dict[Split, CocoSplit]:
    """Both splits as COCO-style annotations; the names that objects have are the classes, those given first."""
    seen = {drawn.name for part in parts.values() for image in part for drawn in image.objects}
    names = [name for name in dict.fromkeys(classes or ()) if name in seen]
    names += sorted(seen - set(names))
    findings.counts.append(f'{root} is read as {tool}')
    found: dict[Split, CocoSplit] = {}
    for split, part in parts.items():
        paths = list(dict.fromkeys(image.path for image in part))
        conversion = Conversion(split, common_folder(paths, root))
        sizes = readable_sizes(paths, root, split, findings)
        numbers: dict[Path, int] = {}
        for image in part:
            if image.path not in sizes:
                continue
            size = sizes[image.path]
            if image.said is not None and image.said != size:
                findings.error(
                    "width and height differ from the file's",
                    f'{image.place} says {image.said[0]}x{image.said[1]}, '
                    f"'{below(image.path, root)}' is {size[0]}x{size[1]}",
                )
            if image.path in numbers:
                findings.error('two entries for one image', f"{image.place}, '{below(image.path, root)}'")
                continue
            numbers[image.path] = conversion.add_image(image.path, size)
            for name, shape, place in image.objects:
                conversion.add_box(
                    numbers[image.path],
                    names.index(name) + 1,
                    shape.box,
                    place,
                    segmentation=shape.segmentation,
                    area=shape.area,
                )
        where = sources[split][0] if len(sources[split]) == 1 else common_folder(sources[split], root)
        found[split] = conversion.as_coco(where, names)
    return found


def rectangle(x: float, y: float, width: float, height: float) -> Shape:
    """A box without a mask; its sides may be negative, as of one that was drawn from the lower right."""
    return Shape((min(x, x + width), min(y, y + height), abs(width), abs(height)))


def outline(polygons: Sequence[Sequence[float]]) -> Shape:
    """An object of one or more polygons ``[x1, y1, x2, y2, ...]``."""
    xs = [value for polygon in polygons for value in polygon[::2]]
    ys = [value for polygon in polygons for value in polygon[1::2]]
    box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
    return Shape(box, [list(polygon) for polygon in polygons], sum(map(polygon_area, polygons)))


def ellipse(x: float, y: float, width: float, height: float, angle: float = 0.0) -> list[float]:
    """A polygon around ``(x, y)`` with the given half axes, turned clockwise by ``angle`` (radians)."""
    polygon = []
    for step in range(_CORNERS):
        along, across = (
            half * turn(2 * math.pi * step / _CORNERS) for half, turn in ((width, math.cos), (height, math.sin))
        )
        polygon += [
            x + along * math.cos(angle) - across * math.sin(angle),
            y + along * math.sin(angle) + across * math.cos(angle),
        ]
    return polygon


def numbers_in(record: Any, keys: Iterable[str]) -> list[float] | None:
    """The numbers under the keys; None if one is not there, or not a number."""
    values = [record.get(key) for key in keys] if isinstance(record, dict) else [None]
    return [float(value) for value in values if value is not None] if all(map(is_number, values)) else None


def points_in(value: Any, least: int) -> list[float] | None:
    """``[[x, y], ...]`` as ``[x, y, ...]``; None if it is not a list of ``least`` points or more."""
    if not isinstance(value, list) or len(value) < least:
        return None
    if not all(isinstance(point, list) and len(point) == 2 and all(map(is_number, point)) for point in value):
        return None
    return [number for point in value for number in point]


def told(value: Any) -> str:
    """A record of a JSON file in a sentence."""
    return shortened(value_text(value), 60)
