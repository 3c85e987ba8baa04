"""COCO-style JSON: reading it as pycocotools does, and the table of what every field must be."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from repnext_mm.data.own.findings import Findings, listed, quoted, shortened, value_text
from repnext_mm.data.sources import Split
from repnext_mm.errors import UserError

Record = dict[str, Any]
Section = Literal['images', 'annotations', 'categories']


class Field(NamedTuple):
    """One key of a record."""

    key: str
    rule: str  # what its value must be
    accepts: Callable[[Any], bool]
    needed: bool = True


def is_number(value: Any) -> bool:
    """A finite number that fits 64 bits; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def _is_whole(value: Any) -> bool:
    return is_number(value) and value == int(value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_file_name(value: Any) -> bool:
    return _is_name(value) and '\0' not in value


def _is_id(value: Any) -> bool:
    return is_number(value) or isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, int | float) and value in (0, 1)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def _is_polygon(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


def _is_run_length(value: Any) -> bool:
    size, counts = value.get('size'), value.get('counts')
    if not (isinstance(size, list) and len(size) == 2 and all(_is_whole(side) and side > 0 for side in size)):
        return False
    return isinstance(counts, str) or (isinstance(counts, list) and all(_is_whole(run) and run >= 0 for run in counts))


def _is_segmentation(value: Any) -> bool:
    """Also null and empty: a box without a mask."""
    if isinstance(value, dict):
        return not value or _is_run_length(value)
    return value is None or (isinstance(value, list) and all(map(_is_polygon, value)))


_ID = 'a number or text'
_SIDE = 'a whole number of pixels, 1 or more'
FIELDS: dict[Section, tuple[Field, ...]] = {
    'categories': (
        Field('id', _ID, _is_id),
        Field('name', 'text (in quotes, and not empty)', _is_name),
    ),
    'images': (
        Field('id', _ID, _is_id),
        Field('file_name', 'text, the path below the folder of images', _is_file_name),
        Field('width', _SIDE, lambda value: _is_whole(value) and value >= 1),
        Field('height', _SIDE, lambda value: _is_whole(value) and value >= 1),
    ),
    'annotations': (
        Field('id', _ID, _is_id),
        Field('image_id', "an image's id", _is_id),
        Field('category_id', "a category's id", _is_id),
        Field('bbox', 'four numbers [x, y, width, height]', _is_box),
        Field('area', 'a number (the pixels of the mask, or width x height of the box)', is_number),
        Field('iscrowd', '0 (one object) or 1 (a crowd)', _is_flag, needed=False),
        Field('ignore', '0 or 1, or absent', lambda value: value is None or _is_flag(value), needed=False),
        Field(
            'segmentation',
            'a list of polygons [[x1, y1, x2, y2, x3, y3, ...], ...], or {"size": [height, width], "counts": ...}',
            _is_segmentation,
            needed=False,
        ),
    ),
}
_SCORED = {  # what pycocotools alone asks for
    'iscrowd': Field('iscrowd', '0 (one object) or 1 (a crowd)', _is_flag),
    'id': Field('id', 'a number', is_number),
}
_KINDS = {  # what other formats write at the top
    'labelme': {'shapes', 'imagePath'},
    "VIA's": {'_via_img_metadata'},
    'captions': {'info', 'images', 'annotations', 'licenses'},
}
_SECTIONS: tuple[Section, ...] = ('images', 'annotations', 'categories')


def read_coco(path: Path) -> dict[str, Any]:
    """The content of a COCO-style file.

    Raises:
        UserError: it cannot be read as JSON by pycocotools, or is not COCO-style.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}): give read access to it") from error
    if raw.startswith(b'version https://git-lfs'):
        raise UserError(f"'{path}' is a Git LFS pointer, not the annotations: run `git lfs pull`")
    if raw[:3] == b'\xef\xbb\xbf' or raw[:2] in (b'\xff\xfe', b'\xfe\xff'):
        raise UserError(
            f"'{path}' starts with a byte order mark, which pycocotools refuses: save it as UTF-8 without one"
        )
    repeated: Counter[str] = Counter()

    def from_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            repeated.update(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return record

    try:
        content = json.loads(raw.decode('utf-8'), object_pairs_hook=from_pairs)
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not UTF-8 (at byte {error.start}): save it as UTF-8") from error
    except ValueError as error:
        start = shortened(raw[:40].decode('utf-8', 'replace'))
        raise UserError(
            f"'{path}' is not JSON ({error}; it starts with {start!r}): export the annotations again"
        ) from error
    except RecursionError as error:
        raise UserError(f"'{path}' is not COCO-style: its lists are nested too deeply") from error
    if repeated:
        keys = quoted(key for key, _ in repeated.most_common())
        raise UserError(f"'{path}' has the same key twice in one object, and only the last counts: {keys}")
    if problem := _unlike_coco(content):
        raise UserError(
            f"'{path}' {problem}: COCO-style annotations are an object with the lists images, annotations and "
            'categories; export or convert them to COCO'
        )
    return dict(content)


def _unlike_coco(content: Any) -> str | None:
    """What is wrong at the top, or None."""
    if isinstance(content, list):
        return 'is a list (of results, or of another format)'
    if not isinstance(content, dict):
        return f'is {value_text(content)}'
    for name, keys in _KINDS.items():
        if keys <= content.keys() and not set(_SECTIONS) <= content.keys():
            return f'is a file of {name}'
    for key in _SECTIONS:
        if key not in content:
            return f"has no '{key}'"
        if not isinstance(content[key], list):
            return f"has {value_text(content[key])} as '{key}'"
        others = [place for place, entry in enumerate(content[key]) if not isinstance(entry, dict)]
        if others:
            examples = listed([f'{key}[{place}] is {value_text(content[key][place])}' for place in others])
            return f"has entries of '{key}' that are not objects ({examples})"
    return None


def check_fields(split: Split, content: Mapping[str, Any], findings: Findings) -> dict[Section, dict[int, Record]]:
    """The records whose every field is as training and scoring need it, by their place in the file."""
    sound: dict[Section, dict[int, Record]] = {}
    for section, fields in FIELDS.items():
        if split == 'val' and section == 'annotations':  # training reads `train` only, scoring `val` only
            fields = tuple(_SCORED.get(field.key, field) for field in fields)
        sound[section] = {}
        for place, record in enumerate(content[section]):
            wrong = [field for field in fields if not _fits(record, field)]
            for field in wrong:
                where = f'{section}[{place}].{field.key} of {split}'
                value = value_text(record[field.key]) if field.key in record else 'absent'
                findings.error(f'{field.key} of {section} must be {field.rule}', f'{where} is {value}')
            if not wrong:
                sound[section][place] = record
    for section, key in (('images', 'id'), ('categories', 'id')):
        ids = [record[key] for record in sound[section].values()]
        texts = [value for value in ids if isinstance(value, str)]
        if texts and len(texts) < len(ids):
            number = next(value for value in ids if not isinstance(value, str))
            findings.error(
                f'ids of {section} must be all numbers or all text: pycocotools sorts them',
                f'{value_text(number)} and {value_text(texts[0])} of {split}',
            )
    return sound


def _fits(record: Record, field: Field) -> bool:
    return field.accepts(record[field.key]) if field.key in record else not field.needed
