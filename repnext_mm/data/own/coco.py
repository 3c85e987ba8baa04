"""Checks of COCO-style annotations: what mmdet would trip over, leave out silently, or learn wrongly."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from repnext_mm.data.own.coco_libraries import MOST_SCORED, SMALLEST, perfect_score, used_boxes
from repnext_mm.data.own.fields import FIELDS, Record, Section, check_fields
from repnext_mm.data.own.findings import Findings, quoted, shortened, value_text
from repnext_mm.data.own.images import see_all
from repnext_mm.data.own.layout import CocoSplit
from repnext_mm.data.own.masks import check_mask, has_mask
from repnext_mm.data.sources import Split


class CocoFacts(NamedTuple):
    """What a config needs to know."""

    classes: tuple[str, ...]  # in the order of the categories: mmdet numbers them so, whatever `classes` says
    masks: bool  # False: boxes only
    images: int  # to train on


def check_coco(
    splits: Mapping[Split, CocoSplit], classes: Sequence[str] | None, findings: Findings, *, boxes_only: bool = False
) -> CocoFacts:
    """Check both splits against each other, against ``classes`` (None: all categories) and against the files.

    With ``boxes_only`` masks are not looked at.
    """
    sound = {split: check_fields(split, part.content, findings) for split, part in splits.items()}
    categories = {split: list(records['categories'].values()) for split, records in sound.items()}
    whole = all(len(categories[split]) == len(part.content['categories']) for split, part in splits.items())
    names = _class_names(categories, classes, findings, compare=whole)
    masks = not boxes_only and any(
        has_mask(box.get('segmentation')) for records in sound.values() for box in records['annotations'].values()
    )
    for split, part in splits.items():
        images = _check_images(split, part, sound[split]['images'], findings)
        named = {record['id']: record['name'] for record in categories[split]}
        broken = _broken_ids(part.content, sound[split])
        boxes = _Boxes(split, images, named, broken, names, masks, part.places, findings)
        boxes.check(sound[split]['annotations'])
        kind = 'boxes with masks' if masks else 'boxes (no masks)'
        findings.counts.append(
            f'{split}: {len(images)} images in {part.images}, {boxes.usable.total()} {kind} of {len(names)} classes '
            f'in {part.annotations}'
        )
    if not findings.errors:
        _ask_the_libraries(splits, names, masks, findings)
    _check_overlap(
        {
            split: {os.path.realpath(part.images / record['file_name']) for record in sound[split]['images'].values()}
            for split, part in splits.items()
        },
        findings,
    )
    return CocoFacts(names, masks, len(splits['train'].content['images']))


def _class_names(
    categories: Mapping[Split, list[Record]], classes: Sequence[str] | None, findings: Findings, *, compare: bool
) -> tuple[str, ...]:
    listed: dict[Split, list[str]] = {}
    for split, records in categories.items():
        listed[split] = [record['name'] for record in records]
        for key in ('id', 'name'):
            for value, count in Counter(record[key] for record in records).items():
                if count > 1:
                    findings.error(f'a category needs {key} of its own', f'{key} {value_text(value)} of {split}')
        ids = [record['id'] for record in records]
        if split == 'val' and len({isinstance(value, str) for value in ids}) == 1 and ids != sorted(ids):
            findings.warn(
                'categories are not in the order of their ids: AP of single classes would stand beside other names '
                '(the mean is right)',
                f'{quoted(ids)} of val',
            )
    known = listed['train']
    for name in classes or ():
        if name not in known:
            findings.error(f'--classes names what the annotations do not have ({quoted(known)})', f"'{name}'")
    names = tuple(name for name in known if classes is None or name in classes)
    if classes is not None and set(classes) == set(names) and tuple(classes) != names:
        findings.warn('mmdet numbers classes in the order of the categories, and so does the config', quoted(names))
    for name in known:
        if name not in names:
            findings.warn('boxes of a category that is not in --classes are left out', f"'{name}'")
    if (other := tuple(name for name in listed['val'] if name in names)) != names and compare:
        first = next(k for k in range(len(names) + 1) if names[k : k + 1] != other[k : k + 1])
        findings.error(
            'both splits must list the same categories in the same order, or labels mean different classes',
            f'from category {first + 1} on train has {quoted(names[first:]) or "none"}; '
            f'val has {quoted(other[first:] or listed["val"]) or "none"}',
        )
    return names


def _check_images(
    split: Split, part: CocoSplit, records: Mapping[int, Record], findings: Findings
) -> dict[Any, Record]:
    """The records by id; each file is decoded as in training."""
    found: dict[Any, Record] = {}
    there: list[tuple[str, Record]] = []
    for place, record in records.items():
        if record['id'] in found:
            findings.error('duplicate image id', f'{value_text(record["id"])} in images[{place}] of {split}')
        found[record['id']] = record
        where = f"'{record['file_name']}' of {split}"
        if os.path.isfile(part.images / record['file_name']):
            there.append((where, record))
        elif os.path.islink(part.images / record['file_name']):
            findings.error('image file is a link that leads nowhere', where)
        elif '\\' in record['file_name']:
            findings.error('missing image file (its name has backslashes: write /)', where)
        else:
            findings.error('missing image file', where)
    for name, count in Counter(record['file_name'] for record in records.values()).items():
        if count > 1:
            findings.warn('several records name one file, and each is trained on with its own boxes alone', f"'{name}'")
    seen_images = see_all(part.images / record['file_name'] for _, record in there)
    for (where, record), seen in zip(there, seen_images, strict=True):
        seen.report(where, findings)
        size = (int(record['width']), int(record['height']))
        if seen.size is not None and seen.size != size:
            turned = ' (turned by EXIF: boxes must fit the turned image)' if seen.turned else ''
            findings.error(
                "width and height differ from the file's",
                f'{where} is {seen.size[0]}x{seen.size[1]}, not {size[0]}x{size[1]}{turned}',
            )
        elif seen.turned:
            findings.warn('EXIF turns or mirrors the image in training: boxes must fit the turned image', where)
        if split == 'train' and min(size) < SMALLEST:
            findings.warn(f'training leaves out images below {SMALLEST} pixels', where)
    return found


def _broken_ids(content: Mapping[str, Any], sound: Mapping[Section, Mapping[int, Record]]) -> set[tuple[str, Any]]:
    """Sections and ids of records with an unsound field: what refers to them is not reported a second time."""
    return {
        (section, record.get('id') if isinstance(record.get('id'), str | int | float) else None)
        for section in FIELDS
        for place, record in enumerate(content[section])
        if place not in sound[section]
    }


@dataclass
class _Boxes:
    """The boxes of one split, with what is counted over all of them."""

    split: Split
    images: Mapping[Any, Record]
    categories: Mapping[Any, str]
    broken: set[tuple[str, Any]]  # see `_broken_ids`
    names: tuple[str, ...]
    masks: bool
    places: Sequence[str] | None  # where the boxes stood before they were converted
    findings: Findings
    usable: Counter[str] = field(default_factory=Counter)  # per class
    in_image: Counter[Any] = field(default_factory=Counter)
    crowds: int = 0
    ignored: int = 0
    chosen: int = 0

    def check(self, annotations: Mapping[int, Record]) -> None:
        seen: set[Any] = set()
        for index, box in annotations.items():
            place = f'annotations[{index}] (id {value_text(box["id"])}) of {self.split}'
            if self.places is not None:
                place = f'{self.places[index]} of {self.split}'
            if box['id'] in seen:
                self.findings.error('duplicate annotation id', place)
            seen.add(box['id'])
            if box['id'] == 0 and self.split == 'val':
                self.findings.warn('pycocotools counts a match with the annotation id 0 as a miss: count from 1', place)
            image, name = self.images.get(box['image_id']), self.categories.get(box['category_id'])
            if name is None and ('categories', box['category_id']) not in self.broken:
                self.findings.error('unknown category id', f'{value_text(box["category_id"])} in {place}')
            if image is None and ('images', box['image_id']) not in self.broken:
                self.findings.error('unknown image id', f'{value_text(box["image_id"])} in {place}')
            if image is not None and name in self.names:
                self._check_one(box, image, str(name), place)
        if not self.broken:
            self._check_counts()

    def _check_one(self, box: Record, image: Record, name: str, place: str) -> None:
        self.chosen += 1
        self.in_image[box['image_id']] += 1
        fits = self._fits(box, image, place)
        self.crowds += bool(box.get('iscrowd'))
        self.ignored += bool(box.get('ignore'))
        left_out = box.get('iscrowd') or (self.split == 'train' and box.get('ignore'))
        if fits and not left_out:
            self.usable[name] += 1
        if self.masks:
            check_mask(box.get('segmentation'), image, place, self.findings, scored=self.split == 'val')

    def _fits(self, box: Record, image: Record, place: str) -> bool:
        """Whether mmdet would use it."""
        x, y, width, height = box['bbox']
        place = (
            f'{place}, {value_text(box["bbox"])} in {quoted([image["file_name"]])} ({image["width"]}x{image["height"]})'
        )
        if width < 1 or height < 1 or box['area'] <= 0:
            self.findings.error('empty box (a side below one pixel, or no area)', place)
            return False
        if x >= image['width'] or y >= image['height'] or x + width <= 0 or y + height <= 0:
            self.findings.error('box outside its image', place)
            return False
        if x < -1 or y < -1 or x + width > image['width'] + 1 or y + height > image['height'] + 1:
            self.findings.warn('box sticks out of its image; bbox is [x, y, width, height], not two corners', place)
        return True

    def _check_counts(self) -> None:
        split, findings = self.split, self.findings
        if not self.chosen:
            findings.error('no box of any class', split)
        elif not self.usable.total() and self.crowds + self.ignored:
            findings.error(
                'no box is left to learn or to score: training leaves out what is marked iscrowd or ignore; where a '
                'box is one object (as in CVAT\'s export of masks) write "iscrowd": 0, no "ignore"',
                f'{self.crowds} crowds and {self.ignored} ignored of {self.chosen} boxes of {split}',
            )
        else:
            for name in self.names:
                if not self.usable[name]:
                    findings.warn('class without boxes', f"'{name}' in {split}")
            if self.crowds:
                findings.warn(
                    'training leaves out boxes marked iscrowd, and scoring does not ask for them',
                    f'{self.crowds} of {self.chosen} of {split}',
                )
            if self.ignored:
                rule = 'training leaves out boxes marked ignore'
                if split == 'val':
                    rule = 'scoring asks for boxes marked ignore like for all others: pycocotools goes by iscrowd alone'
                findings.warn(rule, f'{self.ignored} of {self.chosen} of {split}')
        if (empty := len(self.images) - len(self.in_image)) and split == 'train':
            findings.warn('training leaves out images without boxes', f'{empty} of {len(self.images)}')
        for image, count in self.in_image.items():
            if count > MOST_SCORED:
                findings.warn(
                    f'more than {MOST_SCORED} boxes in one image: detectors return at most {MOST_SCORED} '
                    "(model.test_cfg.rcnn.max_per_img), and COCO's AP counts as many of a class",
                    f'{count} in {quoted([self.images[image]["file_name"]])} of {split}',
                )


def _ask_the_libraries(
    splits: Mapping[Split, CocoSplit], names: tuple[str, ...], masks: bool, findings: Findings
) -> None:
    """What mmdet and pycocotools make of annotations in which nothing wrong was seen."""
    train = splits['train']
    if train.places is None:
        used = used_boxes(train.annotations, names)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, 'train.json')
            path.write_text(json.dumps(train.content), encoding='utf-8')
            used = used_boxes(path, names)
    if used is None:
        findings.warn('what mmdet itself would leave out was not tried', 'mmdet is not installed here')
    elif not used:
        findings.error('mmdet finds no box to learn from', shortened(str(train.annotations)))
    for kind in ('bbox', 'segm') if masks else ('bbox',):
        score = perfect_score(splits['val'].content, names, kind)
        if score is not None and score < 0.9995:
            findings.warn(f'even detections that equal the annotations score less than 1 as {kind} AP', f'{score:.3f}')


def _check_overlap(files: Mapping[Split, set[str]], findings: Findings) -> None:
    for path in sorted(filter(os.path.isfile, files['train'] & files['val'])):
        findings.warn('image is in both splits: what is trained on must not be scored', f"'{path}'")
