"""Where annotations and pictures of each split lie below one folder, told by names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, get_args

from repnext_mm.datasets.check.pictures import SUFFIXES
from repnext_mm.datasets.sources import Split

_SPLIT_NAMES = {
    'train': 'train', 'training': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val', 'test': 'test',
}  # fmt: skip
_MAP_NAMES = {'ann', 'anns', 'annotation', 'annotations', 'gt', 'label', 'labels', 'mask', 'masks', 'seg', 'maps'}
_PROBED = 50  # file names of a JSON that are looked for in each folder
_RULE = "name one 'train' and one 'val' (or training, validation, valid, test), in its own name or its folder's"


class CocoSplit(NamedTuple):
    """A COCO-style JSON file, its content, and the folder its file names start from."""

    annotations: Path
    pictures: Path
    content: dict[str, Any]


class MapSplit(NamedTuple):
    """A folder of pictures and one of label maps."""

    pictures: Path
    maps: Path


def find_coco(root: Path) -> dict[Split, CocoSplit]:
    """COCO-style JSON files of both splits, at most two folders deep, and their pictures.

    Raises:
        FileNotFoundError: ``root`` or the pictures of a split are not there.
        ValueError: none or several files for a split, or a file that is not COCO-style.
    """
    _must_be_folder(root)
    files = sorted(path for depth in ('*', '*/*', '*/*/*') for path in root.glob(f'{depth}.json'))
    instances = [path for path in files if path.name.startswith('instances')]  # beside COCO's captions and key points
    folders = [root, *_folders(root)]
    found: dict[Split, CocoSplit] = {}
    for split, path in _choose(instances or files, root, 'COCO annotation file (.json)').items():
        content = _read_coco(path)
        found[split] = CocoSplit(path, _pictures_of(content, path, folders, split, root), content)
    return found


def find_label_maps(root: Path) -> dict[Split, MapSplit]:
    """Folders of pictures and of label maps of both splits, as ``images/train`` and ``annotations/train``.

    Raises:
        FileNotFoundError: ``root`` is not there.
        ValueError: none or several folders for a split.
    """
    _must_be_folder(root)
    folders = [folder for folder in _folders(root) if next(iter(_files(folder)), None) is not None]
    of_maps = [folder for folder in folders if _words(folder, root) & _MAP_NAMES]
    pictures = _choose(set(folders) - set(of_maps), root, 'folder of pictures')
    maps = _choose(of_maps, root, "folder of label maps (below 'annotations', 'masks' or 'labels')")
    return {split: MapSplit(pictures[split], maps[split]) for split in pictures}


def find_class_folders(root: Path) -> dict[Split, Path]:
    """The folders that hold one folder per class, of both splits.

    Raises:
        FileNotFoundError: ``root`` is not there.
        ValueError: none or several folders for a split.
    """
    _must_be_folder(root)
    return _choose((path for path in root.iterdir() if path.is_dir()), root, 'folder of class folders')


def _must_be_folder(root: Path) -> None:
    if not root.is_dir():
        raise FileNotFoundError(f"data folder '{root}' does not exist: give the folder that holds all of the data set")


def _choose(candidates: Iterable[Path], root: Path, what: str) -> dict[Split, Path]:
    """One candidate per split: the least deep; 'test' serves where there is no 'val'."""
    by_split: dict[str, list[Path]] = {}
    for path in candidates:
        named = {_SPLIT_NAMES[word] for word in _words(path, root) & _SPLIT_NAMES.keys()}
        if len(named) == 1:
            by_split.setdefault(named.pop(), []).append(path)
    by_split.setdefault('val', by_split.get('test', []))
    chosen: dict[Split, Path] = {}
    split: Split
    for split in get_args(Split):
        found = by_split.get(split, [])
        least = [path for path in found if len(path.parts) == min(len(other.parts) for other in found)]
        if len(least) != 1:
            seen = ', '.join(f"'{path.relative_to(root)}'" for path in sorted(least)) or 'none'
            raise ValueError(f"'{root}' must hold one {what} of the split '{split}', found {seen}: {_RULE}")
        chosen[split] = least[0]
    return chosen


def _words(path: Path, root: Path) -> set[str]:
    """Lower-case words in the path below the root: `annotations/instances_train2017.json` has 'train'."""
    return set(re.split('[^a-z]+', path.relative_to(root).as_posix().lower()))


def _folders(root: Path) -> list[Path]:
    return sorted(path for depth in ('*', '*/*', '*/*/*') for path in root.glob(depth) if path.is_dir())


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)


def _read_coco(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f"'{path}' is not JSON ({error}): export the annotations again") from error
    missing = [
        key
        for key in ('images', 'annotations', 'categories')
        if not isinstance(content, dict)
        or not isinstance(content.get(key), list)
        or not all(isinstance(entry, dict) for entry in content[key])
    ]
    if missing:
        raise ValueError(f"'{path}' has no list of objects as {' and '.join(missing)}: COCO-style annotations have it")
    return dict(content)


def _pictures_of(content: dict[str, Any], path: Path, folders: list[Path], split: Split, root: Path) -> Path:
    """The folder with most of the file's first pictures; among equals one of the split, then the least deep."""
    names = [str(image.get('file_name')) for image in islice(content['images'], _PROBED)]
    hits = {folder: sum((folder / name).is_file() for name in names) for folder in folders}

    def rank(folder: Path) -> tuple[int, bool, int]:
        named = any(_SPLIT_NAMES.get(word) == split for word in _words(folder, root))
        return hits[folder], named, -len(folder.parts)

    best = max(folders, key=rank)
    if not hits[best]:
        example = f" (such as '{names[0]}')" if names else ''
        raise FileNotFoundError(f"no picture that '{path}' names{example} lies in '{root}' or up to 3 folders below it")
    return best
