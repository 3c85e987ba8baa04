"""What names of images and of their label maps end in: mmseg pairs the two by these endings."""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from repnext_mm.data.own.findings import quoted
from repnext_mm.data.own.images import is_image_name
from repnext_mm.data.own.layout import MAP_NAMES
from repnext_mm.errors import UserError


class Suffixes(NamedTuple):
    """mmseg's ``img_suffix`` and ``seg_map_suffix``."""

    image: str
    map: str


def find_suffixes(
    images: Sequence[str], maps: Sequence[str], *, beside: bool = False, map_suffix: str | None = None
) -> Suffixes:
    """The endings by which most images find their map; the shortest of equal ones.

    Args:
        images: paths below the folder of images.
        maps: paths below the folder of maps.
        map_suffix: what the user says that maps end in.
        beside: both lie in one folder, so that mmseg must not list a map as an image.

    Raises:
        UserError: no image has a map, or each has several.
    """
    images, maps = sorted(filter(is_image_name, images)), sorted(filter(is_image_name, maps))
    found: dict[Suffixes, int] = {}
    for ending in _endings(images, beside):
        stems = [name.removesuffix(ending) for name in images if name.endswith(ending)]
        rests = Counter(rest for stem in stems for rest in _rests(stem, maps) if not (beside and rest == ending))
        found |= {Suffixes(ending, rest): count for rest, count in rests.items() if map_suffix in (None, rest)}
    if beside and found:
        found = {pair: count for pair, count in found.items() if _is_map_ending(pair.map, pair.image)}
        if not found:
            raise UserError(
                f'maps lie beside their images ({quoted(images)}), and mmseg cannot tell the two by the ends of their '
                "names: move the maps to a folder 'masks'"
            )
    if not found and beside:
        raise UserError(
            f'no label map lies beside an image ({quoted(images)}), and no folder of maps is called annotations, '
            'masks or labels: rename it'
        )
    if not found:
        raise UserError(
            f'no label map ({quoted(maps) or "none there"}) fits an image ({quoted(images)}) by its name: the two must '
            'have one name but for the ending, as 0.jpg and 0.png, or 0.jpg and 0_mask.png'
        )
    most = max(found.values())
    best = [pair for pair, count in found.items() if count == most]
    ending = min((pair.image for pair in best), key=len)
    best = [pair for pair in best if pair.image == ending]
    if len(best) > 1:
        raise UserError(
            f'each image has several maps, whose names end in {quoted(sorted(pair.map for pair in best))}: say which '
            'with --map-suffix'
        )
    return best[0]


def _endings(images: Sequence[str], beside: bool) -> list[str]:
    """What may be img_suffix: each extension, and each longer ending that starts at a sign and that many share."""
    counts: Counter[str] = Counter()
    for name in images:
        base = os.path.basename(name)
        counts.update(base[place:] for place in range(1, len(base)) if base[place] in '._-')
    least = len(images) / 4 if beside else len(images) / 2
    extensions = {os.path.splitext(name)[1] for name in images}
    return sorted({ending for ending, count in counts.items() if count > least} | extensions, key=lambda e: (len(e), e))


def _rests(stem: str, maps: Sequence[str]) -> list[str]:
    """What follows the stem in names of maps that start with it, where it starts with a sign."""
    rests = []
    for name in maps[bisect_left(maps, stem) :]:
        if not name.startswith(stem):
            break
        if (rest := name[len(stem) :])[:1] in ('.', '_', '-'):
            rests.append(rest)
    return rests


def _is_map_ending(ending: str, image_ending: str) -> bool:
    """In one folder: the map is what says so, or the lossless one of two formats."""
    if ending.endswith(image_ending):  # mmseg would list it among the images
        return False
    says_map, says_image = (bool(_words(text) & MAP_NAMES) for text in (ending, image_ending))
    if says_map != says_image:
        return says_map
    return image_ending.lower().endswith(('.jpg', '.jpeg')) and not ending.lower().endswith(('.jpg', '.jpeg'))


def _words(ending: str) -> set[str]:
    return {word.lower() for word in re.findall('[A-Z]?[a-z]+|[A-Z]+', ending)}
