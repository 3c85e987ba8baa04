"""YOLO labels: one text file per image, one row per object, in fractions of the image's width and height.

A row is a class number with the center, width and height of a box, or with the points of a polygon. No library reads
them here: globox knows no polygons; supervision turns those into masks, keeps 32 bits, stops at the first bad file,
where a person wants to hear of all of them by row, and would bring PyAV (FFmpeg) along.
Format: https://docs.ultralytics.com/datasets/detect and https://docs.ultralytics.com/datasets/segment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml

from repnext_mm.data.own.converted import Conversion, below, common_folder, readable_sizes
from repnext_mm.data.own.files import is_hidden, list_files, read_lines
from repnext_mm.data.own.findings import Findings, quoted, shortened, value_text
from repnext_mm.data.own.images import is_image_name
from repnext_mm.data.own.layout import IMAGE_NAMES, MAP_NAMES, CocoSplit, files_in, folders_below, one_folder, words_of
from repnext_mm.data.own.masks import polygon_area
from repnext_mm.data.sources import Split
from repnext_mm.errors import UserError

_NAME_FILES = ('classes.txt', 'obj.names', 'classes.names', 'labels.names', '_darknet.labels')
_NOT_LABELS = {*_NAME_FILES, 'train.txt', 'val.txt', 'valid.txt', 'test.txt', 'README.txt', 'readme.txt'}
_LABELS_OF = {'images': 'labels', 'Images': 'Labels', 'IMAGES': 'LABELS'}
_ROUNDING = 1e-6  # a fraction may be so much below 0 or above 1
_ROW = 'a row must be a class number and x y width height, or a class number and x y of three points or more'


class Description(NamedTuple):
    """A data.yaml: class names, and where the images of each split lie."""

    path: Path
    names: tuple[str, ...]
    content: dict[str, Any]


class _Images(NamedTuple):
    """The images of a split, and the folders whose images they are, where they are all of those there."""

    paths: list[Path]
    folders: list[Path]


def find_description(root: Path) -> Description | None:
    """The YAML file that has class names: the one least deep, ``data.yaml`` before others.

    Raises:
        MissingFileError: ``root`` is not there.
        UserError: there are several, or it is not as YOLO needs it.
    """
    found: list[tuple[Path, dict[str, Any]]] = []
    for folder in folders_below(root):
        for path in files_in(folder):
            if path.suffix.lower() in ('.yaml', '.yml') and (content := _yaml(path)) is not None:
                found.append((path, content))
        if found:
            break
    if not found:
        return None
    named = [(path, content) for path, content in found if path.stem.lower() in ('data', 'dataset')] or found
    if len(named) > 1:
        raise UserError(
            f"'{root}' has several YAML files with class names ({quoted(path.name for path, _ in named)}): call the "
            "one that is meant 'data.yaml'"
        )
    ((path, content),) = named
    if 'kpt_shape' in content:
        raise UserError(f"'{path}' describes key points (kpt_shape): give labels with boxes or polygons")
    return Description(path, _names(path, content), content)


def read_yolo(
    root: Path, description: Description | None, classes: Sequence[str] | None, findings: Findings
) -> dict[Split, CocoSplit]:
    """Both splits as COCO-style annotations; an image without a label file, or with an empty one, has no objects.

    Splits are those that ``description`` names, as far as they are there, else told by the folders' names.

    Raises:
        UserError: a split cannot be told, or the class numbers have no names.
    """
    names, source = _class_names(root, description, classes)
    findings.counts.append(f'{root} is read as YOLO, with the {len(names)} class names of {source}')
    found: dict[Split, CocoSplit] = {}
    split: Split
    for split in get_args(Split):
        images = _images_of(root, description, split, findings)
        _check_pairs(images, root, split, findings)
        conversion = Conversion(split, common_folder(images.paths, root))
        for path, size in readable_sizes(images.paths, root, split, findings).items():
            number = conversion.add_image(path, size)
            if (label := _label_of(path)).is_file():
                _add_rows(conversion, number, size, label, root, names, findings)
        labels = [folder for folder in map(_labels_folder, images.folders) if folder.is_dir()]
        found[split] = conversion.as_coco(labels[0] if len(labels) == 1 else root, names)
    return found


def _yaml(path: Path) -> dict[str, Any] | None:
    """The content, if it has class names."""
    try:
        text = path.read_text(encoding='utf-8-sig', errors='replace')
        content = yaml.safe_load(text) if re.search(r'^\W*names\W', text, re.MULTILINE) else None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}): give read access to it") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = shortened(' '.join(str(error).split()))
        raise UserError(f"'{path}' is not YAML ({problem}): correct it, or move it away") from error
    return content if isinstance(content, dict) and 'names' in content else None


def _names(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    names = content['names']
    if isinstance(names, dict):
        numbers = list(names)
        if sorted(map(str, numbers)) != sorted(map(str, range(len(names)))):
            raise UserError(f"'{path}' names the classes {quoted(numbers)}: they must be numbered from 0 without gaps")
        names = [names[number] for number in sorted(numbers, key=int)]
    if not isinstance(names, list):
        raise UserError(f"'{path}' has {_told(names)} as names: write a list, or 'number: name' for each class")
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
            raise UserError(f"'{path}' has the class name {_told(name)}: put names in quotes, as YAML reads it so")
    if 'nc' in content and content['nc'] != len(names):
        raise UserError(f"'{path}' has {len(names)} names and nc: {_told(content['nc'])}: correct one of them")
    return _different([str(name) for name in names], path)


def _told(value: Any) -> str:
    """A value of YAML, whose aliases could make a short list endless when it is printed."""
    return f'a {type(value).__name__}' if isinstance(value, list | dict) else value_text(value)


def _class_names(
    root: Path, description: Description | None, classes: Sequence[str] | None
) -> tuple[tuple[str, ...], str]:
    """The names in the order of their numbers, and where they are from."""
    if description is not None:
        return description.names, below(description.path, root)
    for folder in folders_below(root):
        for path in files_in(folder):
            if path.name in _NAME_FILES:
                return _different(read_lines(path), path), below(path, root)
    if classes is None:
        raise UserError(
            f"'{root}' has YOLO labels, and no data.yaml or classes.txt names their class numbers: add one, or name "
            'them in order with --classes'
        )
    return tuple(classes), '--classes'


def _different(names: Sequence[str], path: Path) -> tuple[str, ...]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise UserError(
            f"'{path}' has {quoted(twice) + ' twice' if twice else 'no class name'}: give each class a name"
        )
    return tuple(names)


def _images_of(root: Path, description: Description | None, split: Split, findings: Findings) -> _Images:
    if description is not None:
        content = description.content
        keys = ('train',) if split == 'train' else ('val', 'valid', 'test')
        entry = next((content[key] for key in keys if content.get(key)), None)
        entries = entry if isinstance(entry, list) else [entry]
        places = [_place(text, description, root) if isinstance(text, str) else None for text in entries]
        found = [place for place in places if place is not None]
        if len(found) == len(entries):
            return _listed(found, description, root, split)
        if entry is not None:
            findings.warn(
                f'what {description.path.name} names is not there, and folders are told by their names instead',
                f'{split}: {_told(entry)}',
            )
    folders = [folder for folder in folders_below(root) if folder != root and not words_of(folder, root) & MAP_NAMES]
    folder = one_folder(folders, split, root, 'folder of images', prefer=IMAGE_NAMES)
    return _Images(_images_in(folder), [folder])


def _place(text: str, description: Description, root: Path) -> Path | None:
    """The folder or list of images that an entry means, wherever its author's working folder was."""
    start = description.content.get('path')
    parts = list(Path(text).parts)
    while parts and parts[0] in ('.', '..'):  # exports of Roboflow write ../train/images
        parts.pop(0)
    candidates = [Path(start, text)] if isinstance(start, str) and Path(start).is_absolute() else []
    candidates += [description.path.parent / start / text] if isinstance(start, str) else []
    candidates += [description.path.parent / text, root / text, description.path.parent.joinpath(*parts)]
    return next((Path(os.path.abspath(path)) for path in candidates if os.path.exists(path)), None)


def _listed(places: Sequence[Path], description: Description, root: Path, split: Split) -> _Images:
    paths: list[Path] = []
    folders: list[Path] = []
    for place in places:
        if place.is_dir():
            folders.append(place)
            paths += _images_in(place)
        else:
            paths += [_listed_image(line, (place.parent, root)) for line in read_lines(place)]
    if not paths:
        raise UserError(
            f"{description.path.name} names {quoted(below(place, root) for place in places)} for '{split}', and no "
            'image is there: correct the entry'
        )
    return _Images(list(dict.fromkeys(Path(os.path.abspath(path)) for path in paths)), folders)


def _listed_image(line: str, starts: Sequence[Path]) -> Path:
    """The image that a list means, also where its author's folders were others above: CVAT writes data/images/..."""
    parts = Path(line).parts
    for first in range(max(1, len(parts) - 1)):  # one folder at least, or the whole
        for start in starts:
            if os.path.isfile(path := start.joinpath(*parts[first:])):
                return path
    return starts[0] / line


def _images_in(folder: Path) -> list[Path]:
    names = (name for name in list_files(folder).files if not any(map(is_hidden, Path(name).parts)))
    return [folder / name for name in names if is_image_name(name)]


def _labels_folder(images: Path) -> Path:
    """The same path with the last `images` replaced by `labels`, as YOLO's training looks for it; else beside."""
    parts = list(images.parts)
    for place in reversed(range(len(parts))):
        if parts[place] in _LABELS_OF:
            parts[place] = _LABELS_OF[parts[place]]
            return Path(*parts)
    return images


def _label_of(image: Path) -> Path:
    name = f'{image.stem}.txt'
    apart = _labels_folder(image.parent) / name
    return apart if apart.is_file() or not (image.parent / name).is_file() else image.parent / name


def _check_pairs(images: _Images, root: Path, split: Split, findings: Findings) -> None:
    """Labels without an image, and a split without labels; an image without a label has no objects."""
    expected = {_label_of(path) for path in images.paths}
    there = {path for path in expected if path.is_file()}
    if images.paths and not there:
        image = images.paths[0]
        findings.error(
            "no image of a split has a label file where YOLO's training looks for it",
            f"'{below(_label_of(image), root)}' for '{below(image, root)}' of {split}",
        )
    if not images.folders:  # of a list of images, others may lie beside
        return
    folders = {path.parent for path in there} or {_labels_folder(folder) for folder in images.folders}
    for path in (path for folder in sorted(folders) if folder.is_dir() for path in files_in(folder)):
        if path.suffix == '.txt' and path.name not in _NOT_LABELS and path not in expected:
            findings.error('label file without an image of its name', f"'{below(path, root)}' of {split}")


def _add_rows(
    conversion: Conversion,
    image: int,
    size: tuple[int, int],
    label: Path,
    root: Path,
    names: Sequence[str],
    findings: Findings,
) -> None:
    try:
        lines = label.read_text(encoding='utf-8-sig').splitlines()
    except OSError as error:
        findings.error('file cannot be opened', f"'{below(label, root)}' ({error.strerror})")
        return
    except UnicodeDecodeError:
        findings.error('a label file must be text in UTF-8', f"'{below(label, root)}'")
        return
    seen: set[tuple[float, ...]] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"row {number} of '{below(label, root)}'"
        row = _row(line, place, names, findings)
        if row is None:
            continue
        if row in seen:
            findings.warn('the same row twice in one label file: it is used once', place)
            continue
        seen.add(row)
        category = int(row[0]) + 1
        if len(row) == 5:
            x, y, width, height = (value * size[axis % 2] for axis, value in enumerate(row[1:]))
            conversion.add_box(image, category, (x - width / 2, y - height / 2, width, height), place)
        else:
            points = [value * size[axis % 2] for axis, value in enumerate(row[1:])]
            left, top = min(points[::2]), min(points[1::2])
            box = (left, top, max(points[::2]) - left, max(points[1::2]) - top)
            conversion.add_box(image, category, box, place, segmentation=[points], area=polygon_area(points))


def _row(line: str, place: str, names: Sequence[str], findings: Findings) -> tuple[float, ...] | None:
    """Class number and coordinates; None after an error."""
    try:
        values = tuple(map(float, line.split()))
    except ValueError:
        findings.error(_ROW, f'{place} is {value_text(line)}')
        return None
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        findings.error(_ROW, f'{place} has {len(values)} values')
    elif values[0] not in range(len(names)):
        findings.error(
            f'class number must be from 0 to {len(names) - 1}, as there are names', f'{values[0]:g} in {place}'
        )
    elif outside := [value for value in values[1:] if not -_ROUNDING <= value <= 1 + _ROUNDING]:
        findings.error('coordinates must be fractions of width and height, from 0 to 1', f'{outside[0]:g} in {place}')
    else:
        return values
    return None
