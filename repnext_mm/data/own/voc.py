"""Pascal VOC: one .xml file per image, with boxes in pixels.

Boxes count pixels from 1 and include both ends, as in the challenge: the box 1, 1, W, H is the whole image. Where a box
starts at 0, the data cannot count so (exports of CVAT and Roboflow do not), and boxes of all the data are taken as
edges. What is marked `difficult` becomes `iscrowd`: as in the challenge, it is neither learned nor asked for.

The standard library parses them, as of an XML file only tags and text are used; a document type is refused, since its
entities could fill the memory. Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf, section 10.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args
from xml.etree import ElementTree

from repnext_mm.data.own.converted import Conversion, below, common_folder, readable_sizes
from repnext_mm.data.own.fields import is_number
from repnext_mm.data.own.files import read_lines
from repnext_mm.data.own.findings import Findings, quoted, shortened, value_text
from repnext_mm.data.own.images import is_image_name
from repnext_mm.data.own.layout import IMAGE_NAMES, SPLIT_RULE, CocoSplit, files_in, folders_below, of_split, words_of
from repnext_mm.data.sources import Split
from repnext_mm.errors import MissingFileError, UserError

_SIDES = ('xmin', 'ymin', 'xmax', 'ymax')
_LISTS: dict[Split, tuple[str, str]] = {'train': ('train.txt', 'trainval.txt'), 'val': ('val.txt', 'test.txt')}
_NO_XML = 'image without an .xml file: write one without an object where there is nothing to see'


class _Object(NamedTuple):
    name: str
    corners: tuple[float, ...]  # xmin, ymin, xmax, ymax as they are written
    difficult: bool
    place: str


class _Annotated(NamedTuple):
    """An image and what its file of annotations says."""

    image: Path
    size: tuple[int, int] | None  # (width, height); None where the file has none that could be
    objects: list[_Object]


class _DocumentTypeError(ValueError):
    """A file declares a document type."""


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, *_: Any) -> None:
        raise _DocumentTypeError


def read_voc(root: Path, classes: Sequence[str] | None, findings: Findings) -> dict[Split, CocoSplit]:
    """Both splits as COCO-style annotations, told by ``ImageSets/Main``, else by the names of folders or files.

    The names that objects have are the classes, in the order of ``classes`` and then of the alphabet.

    Raises:
        MissingFileError: there are lists of a split, and no folder of images.
        UserError: a split cannot be told.
    """
    pairs = _listed(root, findings) or _by_names(root, findings)
    parts: dict[Split, list[_Annotated]] = {
        split: [read for path, image in found.items() if (read := _read(path, image, root, split, findings))]
        for split, found in pairs.items()
    }
    objects = [thing for part in parts.values() for annotated in part for thing in annotated.objects]
    seen = {thing.name for thing in objects}
    names = [name for name in dict.fromkeys(classes or ()) if name in seen]
    names += sorted(seen - set(names))
    from_zero = [thing for thing in objects if min(thing.corners[:2]) < 1]
    for thing in from_zero:
        findings.warn('boxes start at 0, so all are taken as edges, not as pixels counted from 1', thing.place)
    counted = 'as edges counted from 0' if from_zero else 'in pixels counted from 1'
    findings.counts.append(f'{root} is read as Pascal VOC: boxes {counted}, difficult objects as iscrowd')
    found: dict[Split, CocoSplit] = {}
    for split, part in parts.items():
        found[split] = _converted(part, root, split, names, 0 if from_zero else 1, pairs[split], findings)
    return found


def _converted(
    part: Sequence[_Annotated],
    root: Path,
    split: Split,
    names: Sequence[str],
    first: int,
    pairs: Mapping[Path, Path],
    findings: Findings,
) -> CocoSplit:
    """``first``: the number of the first pixel, 0 where coordinates are edges."""
    conversion = Conversion(split, common_folder(pairs.values(), root))
    sizes = readable_sizes([read.image for read in part if read.size is None], root, split, findings)
    for read in part:
        size = read.size or sizes.get(read.image)
        if size is None:
            continue
        number = conversion.add_image(read.image, size)
        for name, (left, top, right, bottom), difficult, place in read.objects:
            box = (left - first, top - first, right - left + first, bottom - top + first)
            conversion.add_box(number, names.index(name) + 1, box, place, crowd=difficult)
    return conversion.as_coco(common_folder(pairs, root), names)


def _listed(root: Path, findings: Findings) -> dict[Split, dict[Path, Path]]:
    """Annotations and their images as ``ImageSets/Main/{train,val}.txt`` name them; empty without such lists."""
    bases = [path.parent for path in folders_below(root) if path.name == 'ImageSets' and (path / 'Main').is_dir()]
    if not bases:
        return {}
    if len(bases) > 1:
        raise UserError(f"'{root}' has several data sets ({quoted(below(base, root) for base in bases)}): give one")
    ((base),) = bases
    images = _by_stem(folder for folder in folders_below(base) if words_of(folder, base) & IMAGE_NAMES)
    if not images:
        raise MissingFileError(f"'{base}' has ImageSets/Main and no JPEGImages: put the images there")
    found: dict[Split, dict[Path, Path]] = {}
    split: Split
    for split in get_args(Split):
        lists = [base / 'ImageSets/Main' / name for name in _LISTS[split]]
        path = next((path for path in lists if path.is_file()), None)
        if path is None:
            raise UserError(f"'{base / 'ImageSets/Main'}' has neither {quoted(_LISTS[split])} for '{split}': add one")
        found[split] = {}
        for name in dict.fromkeys(_image_id(line, base) for line in read_lines(path)):
            annotations, image = base / 'Annotations' / f'{name}.xml', images.get(Path(name).name)
            if image is None:
                findings.error('missing image file', f"'{name}' of {below(path, root)}")
            elif not os.path.isfile(annotations):
                findings.error(_NO_XML, f"'{below(annotations, root)}' of {split}")
            else:
                found[split][annotations] = image[0]
        if not found[split] and not findings.errors:
            raise UserError(f"'{path}' names no image: write one name a line, without a suffix")
    return found


def _image_id(line: str, base: Path) -> str:
    """A line's image: some lists have -1, 0 or 1 behind it, or the image's suffix."""
    name = line
    if not os.path.isfile(base / 'Annotations' / f'{name}.xml'):
        name = re.sub(r'\s+(-1|0|1)$', '', name)
    return name.removesuffix(Path(name).suffix) if is_image_name(name) else name


def _by_names(root: Path, findings: Findings) -> dict[Split, dict[Path, Path]]:
    """Annotations and their images, by the split that their path names."""
    folders = [folder for folder in folders_below(root) if folder != root]
    annotated = {folder: files for folder in folders if (files := _xml_files(folder))}
    found: dict[Split, dict[Path, Path]] = {}
    split: Split
    for split in get_args(Split):
        named = [path for folder in of_split(annotated, split, root) for path in annotated[folder]]
        if not named:
            held = quoted(below(folder, root) for folder in annotated) or 'none below it'
            raise UserError(
                f"'{root}' has .xml files, no ImageSets/Main, and no folder of them ({held}) is named as the split "
                f"'{split}': {SPLIT_RULE}"
            )
        images = _by_stem(of_split([folder for folder in folders if _has_image(folder)], split, root))
        found[split] = {}
        for path in named:
            fitting = images.get(path.stem, [])
            beside = [image for image in fitting if image.parent == path.parent]
            if len(beside or fitting) == 1:
                found[split][path] = (beside or fitting)[0]
            elif fitting:
                examples = quoted(below(image, root) for image in fitting)
                findings.error('several images for one .xml file', f"'{below(path, root)}' of {split} ({examples})")
            else:
                findings.error('.xml file without an image of its name', f"'{below(path, root)}' of {split}")
        stems = {path.stem for path in named}
        for stem, paths in images.items():
            if stem not in stems:
                findings.error(_NO_XML, f"'{below(paths[0], root)}' of {split}")
    return found


def _xml_files(folder: Path) -> list[Path]:
    return [path for path in files_in(folder) if path.suffix.lower() == '.xml']


def _has_image(folder: Path) -> bool:
    return any(map(is_image_name, files_in(folder)))


def _by_stem(folders: Iterable[Path]) -> dict[str, list[Path]]:
    """Images directly in folders, by their names without the suffix."""
    found: dict[str, list[Path]] = {}
    for path in (path for folder in folders for path in files_in(folder) if is_image_name(path)):
        found.setdefault(path.stem, []).append(path)
    return found


def _read(path: Path, image: Path, root: Path, split: Split, findings: Findings) -> _Annotated | None:
    """One file; None if it cannot be read at all."""
    where = f"'{below(path, root)}' of {split}"
    try:
        tree = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_Builder()))
    except OSError as error:
        findings.error('file cannot be opened', f'{where} ({error.strerror})')
        return None
    except _DocumentTypeError:
        findings.error('an .xml file with a document type (<!DOCTYPE ...>) is not read: remove that part', where)
        return None
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        findings.error('file is not XML', f'{where} ({shortened(str(error))})')
        return None
    if tree.tag != 'annotation':
        findings.error('an .xml file must be an <annotation> of Pascal VOC', f'{where} is <{shortened(str(tree.tag))}>')
        return None
    width, height = (_number(tree.findtext(f'size/{side}')) for side in ('width', 'height'))
    sound = width is not None and height is not None and min(width, height) >= 1
    objects = []
    for number, thing in enumerate(tree.findall('object'), start=1):
        place = f"object {number} of '{below(path, root)}'"
        name = (thing.findtext('name') or '').strip()
        written = [thing.findtext(f'bndbox/{side}') for side in _SIDES]
        corners = tuple(value for value in map(_number, written) if value is not None)
        if not name or len(corners) < 4:
            findings.error(
                'an object must have a name and a bndbox with the numbers xmin, ymin, xmax and ymax',
                f'{place} has the name {value_text(name)} and {value_text(written)}',
            )
            continue
        difficult = (thing.findtext('difficult') or '').strip().lower() in ('1', 'true')
        objects.append(_Object(name, corners, difficult, place))
    return _Annotated(image, (int(width), int(height)) if sound else None, objects)  # type: ignore[arg-type]


def _number(text: str | None) -> float | None:
    try:
        value = float(text or '')
    except ValueError:
        return None
    return value if is_number(value) else None
