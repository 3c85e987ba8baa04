"""COCO-style annotations made from another format's, each with the place in the user's files that it came from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repnext_mm._files import drafted
from repnext_mm.data.own.findings import Findings
from repnext_mm.data.own.images import sizes_of
from repnext_mm.data.own.layout import CocoSplit
from repnext_mm.data.sources import Split


@dataclass
class Conversion:
    """The annotations of one split while they are read."""

    split: Split
    folder: Path  # the names of images start here
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    def add_image(self, path: Path, size: tuple[int, int]) -> int:
        """Record an image of ``(width, height)`` pixels; returns its id."""
        name = path.relative_to(self.folder).as_posix()
        self.images.append({'id': len(self.images) + 1, 'file_name': name, 'width': size[0], 'height': size[1]})
        return len(self.images)

    def add_box(
        self,
        image: int,
        category: int,
        box: Sequence[float],
        place: str,
        *,
        segmentation: list[list[float]] | dict[str, Any] | None = None,
        area: float | None = None,
        crowd: bool = False,
    ) -> None:
        """Record ``[x, y, width, height]`` in pixels, with the mask that it is around and its pixels, if any."""
        record: dict[str, Any] = {
            'id': len(self.annotations) + 1,
            'image_id': image,
            'category_id': category,
            'bbox': list(box),
            'area': box[2] * box[3] if area is None else area,
            'iscrowd': int(crowd),
        }
        if segmentation is not None:
            record['segmentation'] = segmentation
        self.annotations.append(record)
        self.places.append(place)

    def as_coco(self, annotations: Path, categories: Sequence[str]) -> CocoSplit:
        """All of it; ``categories`` have the ids from 1 on."""
        content = {
            'images': self.images,
            'annotations': self.annotations,
            'categories': [{'id': number, 'name': name} for number, name in enumerate(categories, start=1)],
        }
        return CocoSplit(annotations, self.folder, content, self.places)


def readable_sizes(paths: Sequence[Path], root: Path, split: Split, findings: Findings) -> dict[Path, tuple[int, int]]:
    """(width, height) of the images as training sees them; one that cannot be read is an error and is left out."""
    sizes = {}
    for path, seen in zip(paths, sizes_of(paths), strict=True):
        if seen.size is None:
            seen.report(f"'{below(path, root)}' of {split}", findings)
        else:
            sizes[path] = seen.size
    return sizes


def common_folder(paths: Iterable[Path], root: Path) -> Path:
    """The lowest folder that all of the files are below; ``root`` where there are none."""
    folders = {path.parent for path in paths}
    return Path(os.path.commonpath(folders)) if folders else root


def below(path: Path, root: Path) -> str:
    """How a file is called in a sentence."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def converted_files(splits: Iterable[Split], folder: Path) -> dict[Split, Path]:
    """The file of each split that :func:`write_converted` writes."""
    return {split: folder / f'instances_{split}.json' for split in splits}


def write_converted(splits: Mapping[Split, CocoSplit], folder: Path) -> dict[Split, Path]:
    """Write one JSON file per split into a new folder, which is whole or absent; returns the files.

    Raises:
        NotWrittenError: there is no room, or no right to write.
    """
    with drafted(folder) as draft:
        draft.mkdir(parents=True)
        for split, path in converted_files(splits, draft).items():
            path.write_text(json.dumps(splits[split].content), encoding='utf-8')
    return converted_files(splits, folder)
