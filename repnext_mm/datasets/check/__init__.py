"""Finding a user's data below one folder, and checking its annotations before hours of training are spent on them."""

from repnext_mm.datasets.check.class_folders import check_class_folders
from repnext_mm.datasets.check.coco import check_coco
from repnext_mm.datasets.check.findings import Findings
from repnext_mm.datasets.check.label_maps import check_label_maps
from repnext_mm.datasets.check.layout import CocoSplit, MapSplit, find_class_folders, find_coco, find_label_maps

__all__ = [
    'CocoSplit', 'Findings', 'MapSplit', 'check_class_folders', 'check_coco', 'check_label_maps', 'find_class_folders',
    'find_coco', 'find_label_maps',
]  # fmt: skip
