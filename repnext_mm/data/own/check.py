"""One call for each kind of data: find both splits below a folder, and check them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from repnext_mm.data.own.class_folders import check_class_folders
from repnext_mm.data.own.coco import check_coco
from repnext_mm.data.own.detection import find_boxes
from repnext_mm.data.own.findings import Findings
from repnext_mm.data.own.label_maps import check_label_maps
from repnext_mm.data.own.layout import find_class_folders, find_label_maps
from repnext_mm.errors import UserError

TASKS = ('det', 'seg', 'cls')


def check_data(
    task: str,
    root: Path,
    *,
    classes: Sequence[str] | None = None,
    boxes_only: bool = False,
    reduce_zero_label: bool = False,
    map_suffix: str | None = None,
) -> Findings:
    """Check the data below a folder as training and scoring will see them.

    Args:
        task: of ``TASKS``: boxes and masks, label maps, a folder for each class.
        root: the folder that holds all of the data.
        classes: names of the classes; needed for label maps, which hold numbers only.
        boxes_only: see ``check_coco``.
        reduce_zero_label, map_suffix: see ``check_label_maps``.

    Raises:
        UserError: there are no such data, or no names of classes.
    """
    findings = Findings()
    if task == 'det':
        check_coco(find_boxes(root, classes, findings), classes, findings, boxes_only=boxes_only)
    elif task == 'cls':
        check_class_folders(find_class_folders(root), classes, findings)
    elif classes is None:
        raise UserError('label maps hold numbers only: name their classes with --classes')
    else:
        splits = find_label_maps(root)
        check_label_maps(splits, classes, findings, reduce_zero_label=reduce_zero_label, map_suffix=map_suffix)
    return findings
