"""Checks of label maps: pairs, sizes, and values that training would crash on or read as another class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from repnext_mm.data.own.files import list_files, suffix_counts
from repnext_mm.data.own.findings import Findings, listed, quoted
from repnext_mm.data.own.images import GIANT, Seen, in_parallel, read_header, see
from repnext_mm.data.own.layout import MapSplit
from repnext_mm.data.own.suffixes import Suffixes, find_suffixes
from repnext_mm.data.sources import Split
from repnext_mm.errors import UserError

IGNORED = 255


class MapFacts(NamedTuple):
    """What a config needs to know."""

    suffixes: dict[Split, Suffixes]
    images: int  # to train on


class _Map(NamedTuple):
    """A label map as ``LoadAnnotations`` of mmseg reads it."""

    size: tuple[int, int]
    pixels: Counter[int]  # per value
    rule: str | None = None
    detail: str = ''


def check_label_maps(
    splits: Mapping[Split, MapSplit],
    classes: Sequence[str],
    findings: Findings,
    *,
    reduce_zero_label: bool = False,
    map_suffix: str | None = None,
) -> MapFacts:
    """Check every image and map of both splits.

    With ``reduce_zero_label`` the value 0 is ignored and 1 is the first class, as in ADE20K's files; without it 0 is
    the first class. ``map_suffix``: what names of maps end in, where that is not clear.

    Raises:
        UserError: names of images and of maps do not tell which belong together.
    """
    suffixes: dict[Split, Suffixes] = {}
    counts: dict[Split, int] = {}
    for split, part in splits.items():
        images, maps, suffixes[split] = _list_split(split, part, map_suffix, findings)
        counts[split] = len(images)
        pixels: Counter[int] = Counter()
        pairs = []
        for name in images:
            map_name = name.removesuffix(suffixes[split].image) + suffixes[split].map
            if map_name in maps:
                pairs.append((part.images / name, part.maps / map_name))
            else:
                findings.error('image without a map', f"'{name}' of {split} (no '{map_name}')")
        for (image, _), (seen, label_map) in zip(pairs, in_parallel(_see_pair, pairs), strict=True):
            place = f"'{image.relative_to(part.images).as_posix()}' of {split}"
            _check_pair(seen, label_map, place, len(classes) + reduce_zero_label, findings)
            pixels.update(label_map.pixels)
        _check_values(split, pixels, classes, reduce_zero_label, findings)
        values = ', '.join(map(str, sorted(pixels)[:20])) or 'none'
        more = f' and {len(pixels) - 20} more' if len(pixels) > 20 else ''
        findings.counts.append(
            f'{split}: {len(images)} images (*{suffixes[split].image}) in {part.images}, maps (*{suffixes[split].map}) '
            f'of {len(classes)} classes in {part.maps} with the values {values}{more}'
        )
    return MapFacts(suffixes, counts['train'])


def _list_split(
    split: Split, part: MapSplit, map_suffix: str | None, findings: Findings
) -> tuple[list[str], set[str], Suffixes]:
    """What mmseg reads as images, all that may be a map, and the endings."""
    in_images, in_maps = list_files(part.images), list_files(part.maps)
    of_maps = in_maps.files if map_suffix is None else [name for name in in_maps.files if name.endswith(map_suffix)]
    if map_suffix is not None and not of_maps:
        held = suffix_counts(in_maps.files)
        raise UserError(f"no file in '{part.maps}' ends in --map-suffix '{map_suffix}': it holds {held}")
    suffixes = find_suffixes(in_images.files, of_maps, beside=part.images == part.maps, map_suffix=map_suffix)
    images = [name for name in in_images.files if name.endswith(suffixes.image)]
    maps = [name for name in of_maps if name.endswith(suffixes.map)]
    mapped = {name.removesuffix(suffixes.map) for name in maps}
    for name in sorted(mapped - {image.removesuffix(suffixes.image) for image in images}):
        findings.warn('map without an image', f"'{name}{suffixes.map}' of {split}")
    used = {os.path.join(part.images, name) for name in images} | {os.path.join(part.maps, name) for name in maps}
    others = [name for name in in_images.files if os.path.join(part.images, name) not in used]
    without = [name for name in others if os.path.splitext(name)[0] in mapped]  # an image of another format
    for name in without:
        findings.error(
            f"images of a split need one ending, here '{suffixes.image}': mmseg reads no other", f"'{name}' of {split}"
        )
    if left_out := sorted(set(others) - set(without)):
        findings.warn(
            f"files among the images are left out: training reads those that end in '{suffixes.image}'",
            f'{suffix_counts(left_out)} of {split} ({quoted(left_out)})',
        )
    for listing, folder in ((in_images, part.images), (in_maps, part.maps)):
        for name in listing.hidden:
            findings.error('hidden folder, which training reads too: remove it', f"'{folder / name}'")
        for name in listing.broken:
            findings.error('link that leads nowhere', f"'{folder / name}'")
    return images, set(maps), suffixes


def _see_pair(pair: tuple[Path, Path]) -> tuple[Seen, _Map]:
    return see(pair[0]), _see_map(pair[1])


def _see_map(path: Path) -> _Map:
    import mmcv

    nothing: Counter[int] = Counter()
    try:
        content = path.read_bytes()
    except OSError as error:
        return _Map((0, 0), nothing, 'map cannot be opened', str(error.strerror))
    header = read_header(content)
    if header is not None and header.giant:
        return _Map((0, 0), nothing, GIANT)
    try:
        values = mmcv.imfrombytes(content, flag='unchanged', backend='pillow').squeeze()
    except (OSError, SyntaxError, ValueError):
        return _Map((0, 0), nothing, 'map cannot be read')
    kind = '' if header is None else header.kind
    size = (values.shape[1], values.shape[0]) if values.ndim > 1 else (values.size, 1)
    if values.ndim > 2:
        equal = (values[..., :3] == values[..., :1]).all()
        detail = 'its channels are equal: save one of them' if equal else kind
        return _Map(size, nothing, 'map must have one channel of class numbers (mode L or P), not colors', detail)
    if kind.startswith('JPEG'):
        return _Map(size, nothing, 'map must not be a JPEG, which changes the numbers: export it as PNG')
    found, counts = np.unique(values, return_counts=True)
    if (found != found.astype(np.uint8)).any():  # what mmseg turns them into
        return _Map(
            size,
            nothing,
            f'map must hold whole numbers from 0 to {IGNORED}',
            f'{values.dtype} from {found.min():g} to {found.max():g}',
        )
    return _Map(size, Counter(dict(zip(found.astype(int).tolist(), counts.tolist(), strict=True))))


def _check_pair(seen: Seen, label_map: _Map, place: str, allowed: int, findings: Findings) -> None:
    seen.report(place, findings)
    if label_map.rule:
        findings.error(label_map.rule, f'{place} ({label_map.detail})' if label_map.detail else place)
    elif seen.size is not None and label_map.size != seen.size:
        turned = ' (turned by EXIF: the map must fit the turned image)' if seen.turned else ''
        findings.error(
            'map and image differ in size',
            f'{place} is {seen.size[0]}x{seen.size[1]}, its map {label_map.size[0]}x{label_map.size[1]}{turned}',
        )
    elif seen.turned:
        findings.warn('EXIF turns or mirrors the image in training: the map must fit the turned image', place)
    for value in label_map.pixels:
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
    if values and not any(first <= value < first + count for value in values):
        findings.error('no pixel of any class', f'maps of {split} have the values {listed(sorted(values))}')
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
