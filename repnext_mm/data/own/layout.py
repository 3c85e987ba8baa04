"""Where annotations and images of each split lie below one folder, told by names."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, get_args

from repnext_mm.data.own.fields import read_coco
from repnext_mm.data.own.files import is_hidden, list_files, suffix_counts
from repnext_mm.data.own.findings import quoted
from repnext_mm.data.own.images import SUFFIXES, is_image_name
from repnext_mm.data.sources import Split
from repnext_mm.errors import MissingFileError, UserError

_SPLIT_NAMES = {
    'train': 'train',
    'training': 'train',
    'val': 'val',
    'valid': 'val',
    'validation': 'val',
    'test': 'test',
    'testing': 'test',
}
MAP_NAMES = {
    'ann',
    'anns',
    'annot',
    'annots',
    'annotation',
    'annotations',
    'gt',
    'groundtruth',
    'label',
    'labels',
    'labelmap',
    'labelmaps',
    'mask',
    'masks',
    'seg',
    'segmentation',
    'segmentations',
    'map',
    'maps',
    'target',
    'targets',
}
IMAGE_NAMES = {'image', 'images', 'img', 'imgs', 'jpeg', 'photo', 'photos', 'picture', 'pictures', 'rgb'}
_PROBED = 50  # file names of a JSON that are looked for in each folder
_LOOKED_INTO = 20  # JSON files of one split that are read to see which are COCO-style
SPLIT_RULE = "name one 'train' and one 'val' (or training, validation, valid, test), in its own name or its folder's"


class CocoSplit(NamedTuple):
    """COCO-style annotations, and the folder their file names start from.

    ``places`` says for each annotation where it stood before it was converted; None where ``annotations`` is the JSON
    file itself, else it is the file or folder that was converted.
    """

    annotations: Path
    images: Path
    content: dict[str, Any]
    places: Sequence[str] | None = None


class MapSplit(NamedTuple):
    """A folder of images and one of label maps; the same one where maps lie beside their images."""

    images: Path
    maps: Path


def find_coco(root: Path) -> dict[Split, CocoSplit]:
    """COCO-style JSON files of both splits, at most three folders deep, and their images.

    Raises:
        MissingFileError: ``root`` or the images of a split are not there.
        UserError: none or several files for a split, or a file that is not COCO-style.
    """
    folders = folders_below(root)
    files = sorted(path for folder in folders for path in files_in(folder) if path.suffix.lower() == '.json')
    if not files:
        raise UserError(
            f"'{root}' has no .json file up to 3 folders below it, but {suffix_counts(list_files(root).files)}: give "
            f'JSON (COCO, labelme, VIA, Label Studio), YOLO labels (.txt) or Pascal VOC (.xml), each split by its name'
        )
    found: dict[Split, CocoSplit] = {}
    split: Split
    for split in get_args(Split):
        named = of_split(files, split, root)
        if not named:
            raise UserError(
                f"'{root}' has {_count(files, '.json file')} ({_quoted(files, root)}), and none is named as the split "
                f"'{split}': {SPLIT_RULE}"
            )
        path = _one_coco(named, split, root)
        content = read_coco(path)
        found[split] = CocoSplit(path, _images_of(content, path, folders, split, root), content)
    return found


def find_label_maps(root: Path) -> dict[Split, MapSplit]:
    """Folders of images and of label maps of both splits, as ``images/train`` and ``annotations/train``.

    Where no folder of a split is called so, maps are looked for beside their images.

    Raises:
        MissingFileError: ``root`` is not there.
        UserError: none or several folders for a split, or nothing readable in them.
    """
    folders = [folder for folder in folders_below(root) if folder != root]
    of_maps = [folder for folder in folders if words_of(folder, root) & MAP_NAMES]
    holding = {above for folder in of_maps for above in folder.parents} - set(of_maps)
    of_images = [
        folder
        for folder in folders
        if folder not in of_maps and (folder not in holding or any(map(is_image_name, files_in(folder))))
    ]
    beside = not any(of_split(of_maps, split, root) for split in ('train', 'val'))
    found: dict[Split, MapSplit] = {}
    split: Split
    for split in get_args(Split):
        images = one_folder(of_images, split, root, 'folder of images', prefer=IMAGE_NAMES)
        maps = images if beside else one_folder(of_maps, split, root, 'folder of label maps')
        found[split] = MapSplit(images, maps)
    return found


def find_class_folders(root: Path) -> dict[Split, Path]:
    """The folders that hold one folder per class, of both splits.

    Raises:
        MissingFileError: ``root`` is not there.
        UserError: none or several folders for a split, or no folder in them.
    """
    folders = [folder for folder in folders_below(root) if folder != root]
    found: dict[Split, Path] = {}
    split: Split
    for split in get_args(Split):
        found[split] = one_folder(folders, split, root, 'folder of class folders', readable=False)
        if not any(path.is_dir() for path in found[split].iterdir()):
            held = suffix_counts(files_in(found[split]))
            raise UserError(f"'{found[split]}' has no folder in it, but {held}: make one folder for each class")
    return found


def one_folder(
    folders: Sequence[Path], split: Split, root: Path, what: str, *, prefer: Collection[str] = (), readable: bool = True
) -> Path:
    """The least deep folder of a split; ``prefer``: words that decide among several; ``readable``: it holds images."""
    named = of_split(folders, split, root)
    if not named:
        below = [Path(entry.path) for entry in _scan(root) if entry.is_dir()]
        held = f'it holds {_quoted(below, root)}' if below else f'it holds {suffix_counts(files_in(root))}'
        raise UserError(f"'{root}' has no {what} named as the split '{split}' ({held}{_broken(root)}): {SPLIT_RULE}")
    if readable:
        with_images = [path for path in named if any(map(is_image_name, list_files(path).files))]
        if not with_images:
            held = suffix_counts(name for path in named for name in list_files(path).files)
            raise UserError(
                f"{_quoted(named, root)} in '{root}' must be a {what} of the split '{split}', and nothing in it can be "
                f'read ({held}): training reads {" ".join(SUFFIXES)}'
            )
        named = with_images
    least = _least_deep(named)
    chosen = [path for path in least if words_of(path, root) & set(prefer)]
    return _only(chosen if len(chosen) == 1 else least, split, root, what)


def _one_coco(named: Sequence[Path], split: Split, root: Path) -> Path:
    """The file of a split: among several the one called ``instances...``, else the one that is COCO-style."""
    least = _least_deep(named)
    instances = [path for path in least if path.name.startswith('instances')]  # beside captions and key points
    candidates = instances or least
    if len(candidates) > 1:
        like_coco, problem = [], None
        for path in candidates[:_LOOKED_INTO]:
            try:
                read_coco(path)
                like_coco.append(path)
            except ValueError as error:
                problem = problem or error
        if not like_coco:
            raise UserError(
                f"'{root}' has {_count(candidates, '.json file')} of the split '{split}' "
                f'({_quoted(candidates, root)}), and none is COCO-style: {problem}'
            )
        candidates = like_coco
    return _only(candidates, split, root, 'COCO-style .json file')


def _only(found: Sequence[Path], split: Split, root: Path, what: str) -> Path:
    if len(found) > 1:
        raise UserError(
            f"'{root}' has {_count(found, what)} of the split '{split}' ({_quoted(found, root)}): keep one, move the "
            'others away'
        )
    return found[0]


def of_split(paths: Iterable[Path], split: Split, root: Path) -> list[Path]:
    """Those whose path says this split and no other; 'test' serves where there is no 'val'."""
    by_split: dict[str, list[Path]] = {}
    for path in paths:
        names = {_SPLIT_NAMES[word] for word in words_of(path, root) & _SPLIT_NAMES.keys()}
        if len(names) == 1:
            by_split.setdefault(names.pop(), []).append(path)
    return by_split.get(split) or (by_split.get('test', []) if split == 'val' else [])


def words_of(path: Path, root: Path) -> set[str]:
    """Lower-case words in the path below the root: `trainMasks/x_2017`, `trainannot` and `TRAIN/Labels` say 'train'."""
    words = set()
    for part in re.findall('[A-Z]+(?![a-z])|[A-Z]?[a-z]+', path.relative_to(root).as_posix()):
        word = part.lower()
        words.add(word)
        for split in ('train', 'valid', 'val', 'test'):
            rest = word.removeprefix(split)
            if rest != word and rest in MAP_NAMES | IMAGE_NAMES | {'set'}:
                words |= {split, rest}
    return words


def folders_below(root: Path) -> list[Path]:
    """The root and the folders up to three levels below it, without those of programs and systems."""
    if not root.is_dir():
        raise MissingFileError(f"data folder '{root}' does not exist: give the folder that holds all of the data set")
    found, level = [root], [root]
    for _ in range(3):
        level = [Path(entry.path) for folder in level for entry in _scan(folder) if entry.is_dir()]
        found += level
    return found


def files_in(folder: Path) -> list[Path]:
    """The files directly in a folder."""
    return [Path(entry.path) for entry in _scan(folder) if entry.is_file()]


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:  # its is_dir() asks the disk for links only
            return sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"'{folder}' cannot be listed ({error.strerror}): give read access to it") from error


def _least_deep(paths: Sequence[Path]) -> list[Path]:
    least = min(len(path.parts) for path in paths)
    return sorted(path for path in paths if len(path.parts) == least)


def _quoted(paths: Iterable[Path], root: Path) -> str:
    return quoted(path.relative_to(root).as_posix() for path in paths)


def _count(paths: Sequence[Path], what: str) -> str:
    head, *rest = what.split(' of ', 1)
    return ' of '.join([f'{len(paths)} {head}{"s" * (len(paths) > 1)}', *rest])


def _broken(root: Path) -> str:
    links = [path for path in sorted(root.iterdir()) if path.is_symlink() and not path.exists()]
    return f', and links that lead nowhere: {_quoted(links, root)}' if links else ''


def _images_of(content: dict[str, Any], path: Path, folders: list[Path], split: Split, root: Path) -> Path:
    """The folder with most of the file's first images; among equals one of the split, then the least deep."""
    named = (image.get('file_name') for image in content['images'])
    names = list(islice((name for name in named if isinstance(name, str) and name), _PROBED))
    hits = {folder: sum(os.path.isfile(folder / name) for name in names) for folder in folders}

    def rank(folder: Path) -> tuple[int, bool, int]:
        says_split = any(_SPLIT_NAMES.get(word) == split for word in words_of(folder, root))
        return hits[folder], says_split, -len(folder.parts)

    best = max(folders, key=rank)
    if names and not hits[best]:
        raise MissingFileError(
            f"no image that '{path}' names ({quoted(names)}) lies in '{root}' or up to 3 folders below it: its "
            'file_name must be the path below one folder there'
        )
    return best
