"""Annotations for detection in whichever format they come: COCO-style JSON as it is, all others converted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

from repnext_mm.data.own.drawn import Tool, tool_of
from repnext_mm.data.own.files import list_files
from repnext_mm.data.own.findings import Findings
from repnext_mm.data.own.images import is_image_name
from repnext_mm.data.own.label_studio import read_label_studio
from repnext_mm.data.own.labelme import read_labelme
from repnext_mm.data.own.layout import CocoSplit, files_in, find_coco, folders_below, of_split
from repnext_mm.data.own.via import read_via
from repnext_mm.data.own.voc import read_voc
from repnext_mm.data.own.yolo import find_description, read_yolo
from repnext_mm.data.sources import Split

_READERS: dict[Tool, Callable[..., dict[Split, CocoSplit]]] = {
    'labelme': read_labelme,
    'VIA': read_via,
    'Label Studio': read_label_studio,
}


def find_boxes(root: Path, classes: Sequence[str] | None, findings: Findings) -> dict[Split, CocoSplit]:
    """Both splits below a folder; what is wrong in single files or objects goes to ``findings``.

    A JSON file that is named as a split is taken for COCO-style, unless labelme, VIA or Label Studio wrote it. Without
    JSON, a YOLO ``data.yaml`` decides, then .xml files, then .txt files that are named as images.

    Args:
        root: the folder that holds all of the data.
        classes: names of YOLO's class numbers where no file has them, of the one class of VIA without attributes.
        findings: what was read as which format, and what was wrong.

    Raises:
        MissingFileError: ``root`` or the images of a split are not there.
        UserError: annotations are in none of the formats, or a split cannot be told.
    """
    json_files = [path for folder in folders_below(root) for path in files_in(folder) if path.suffix.lower() == '.json']
    tools = {path: tool_of(path) for path in json_files}
    others = [path for path, tool in tools.items() if tool is None]
    if any(of_split(others, split, root) for split in ('train', 'val')):
        return find_coco(root)
    for tool, read in _READERS.items():
        if written := [path for path in json_files if tools[path] == tool]:
            return read(root, written, classes, findings)
    description = find_description(root)
    files = [PurePath(name) for name in list_files(root).files]
    if description is None and any(path.suffix.lower() == '.xml' for path in files):
        return read_voc(root, classes, findings)
    labels = {path.stem for path in files if path.suffix == '.txt'}
    if description is not None or any(path.stem in labels for path in files if is_image_name(path)):
        return read_yolo(root, description, classes, findings)
    return find_coco(root)
