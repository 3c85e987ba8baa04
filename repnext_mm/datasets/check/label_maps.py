"""Checks of label maps: pairs, sizes, and values that training would crash on or read as another class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from repnext_mm.datasets.check.findings import Findings
from repnext_mm.datasets.check.layout import MapSplit
from repnext_mm.datasets.check.pictures import pictures_below, seen_size
from repnext_mm.datasets.sources import Split

IGNORED = 255
MAP_SUFFIX = '.png'
_ONE_CHANNEL = ('1', 'L', 'P', 'I', 'I;16')


class MapFacts(NamedTuple):
    """What a config needs to know."""

    picture_suffixes: dict[Split, str]
    pictures: int  # to train on


def check_label_maps(
    splits: Mapping[Split, MapSplit], classes: Sequence[str], findings: Findings, *, reduce_zero_label: bool = False
) -> MapFacts:
    """Check every picture and map of both splits.

    With ``reduce_zero_label`` the value 0 is ignored and 1 is the first class, as in ADE20K's files; without it 0 is
    the first class.
    """
    suffixes: dict[Split, str] = {}
    counts: dict[Split, int] = {}
    for split, part in splits.items():
        pixels: Counter[int] = Counter()
        pictures = _check_suffixes(split, part, findings)
        suffixes[split] = pictures[0].suffix
        counts[split] = len(pictures)
        maps = {_stem(path, part.maps): path for path in part.maps.rglob(f'*{MAP_SUFFIX}')}
        for picture in pictures:
            path = maps.pop(_stem(picture, part.pictures), None)
            place = f"'{picture.name}' of {split}"
            if path is None:
                findings.error(f'picture without a map of the same name that ends in {MAP_SUFFIX}', place)
                continue
            _check_pair(picture, path, place, len(classes) + reduce_zero_label, pixels, findings)
        for path in maps.values():
            findings.warn('map without a picture of the same name', f"'{path.name}' of {split}")
        _check_values(split, pixels, classes, reduce_zero_label, findings)
        findings.counts.append(
            f'{split}: {len(pictures)} pictures in {part.pictures}, maps of {len(classes)} classes in {part.maps} with '
            f'the values {", ".join(map(str, sorted(pixels))) or "none"}'
        )
    return MapFacts(suffixes, counts['train'])


def _check_suffixes(split: Split, part: MapSplit, findings: Findings) -> list[Path]:
    """The pictures with the most frequent suffix: a data set of mmseg reads one suffix only."""
    pictures = pictures_below(part.pictures)
    usual = Counter(path.suffix for path in pictures).most_common(1)[0][0]
    for path in pictures:
        if path.suffix != usual:
            findings.error(f"pictures of a split need one suffix, here '{usual}'", f"'{path.name}' of {split}")
    return [path for path in pictures if path.suffix == usual]


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix('').as_posix()


def _check_pair(picture: Path, path: Path, place: str, allowed: int, pixels: Counter[int], findings: Findings) -> None:
    """Compare the sizes, and add the map's pixels per value."""
    from PIL import Image

    size = seen_size(picture)
    if size is None:
        findings.error('file is no picture', place)
        return
    try:
        with Image.open(path) as image:
            mode, map_size = image.mode, image.size
            values = np.asarray(image)
    except (OSError, SyntaxError, ValueError):
        findings.error('map cannot be read', place)
        return
    if mode not in _ONE_CHANNEL:
        findings.error(
            'map must have one channel of class numbers (mode L or P), not colours', f'{place} has mode {mode}'
        )
        return
    if map_size != size:
        findings.error(
            'map and picture differ in size',
            f'{place} is {size[0]}x{size[1]}, its map {map_size[0]}x{map_size[1]}',
        )
    found, counts = np.unique(values, return_counts=True)
    pixels.update(dict(zip(found.astype(int).tolist(), counts.tolist(), strict=True)))
    for value in found.astype(int).tolist():
        if value >= allowed and value != IGNORED:
            findings.error(
                f'label values must be 0 to {allowed - 1}, or {IGNORED} for ignored pixels', f'{value} in {place}'
            )


def _check_values(
    split: Split, pixels: Counter[int], classes: Sequence[str], reduce_zero_label: bool, findings: Findings
) -> None:
    """The traps that whole splits show: 0 and 255 as a binary mask, 0 as background or as ignored, absent classes."""
    first, count = int(reduce_zero_label), len(classes)
    values = set(pixels)
    if values == {0, IGNORED} and count > 1:
        findings.error(f'{IGNORED} means ignored: write foreground as 1 where it is 255', f'maps of {split}')
    if not reduce_zero_label and count in values:
        way_out = (
            "is 0 the background, name it as the first of --classes; is 0 'unlabelled' and 1 the first class (as in "
            'ADE20K), give --reduce-zero-label, and 0 is ignored'
        )
        findings.error(f'label value {count}, with {count} classes from 0: {way_out}', f'maps of {split}')
    if reduce_zero_label and 0 not in values:
        findings.warn('--reduce-zero-label ignores the value 0, which no map has', f'maps of {split}')
    if reduce_zero_label and classes and classes[0].lower() == 'background':
        findings.warn("--reduce-zero-label gives the first class the value 1: is '0' the background", f"'{classes[0]}'")
    for value, name in enumerate(classes, start=first):
        if value not in values:
            findings.warn('class without pixels', f"'{name}' (value {value}) in {split}")
