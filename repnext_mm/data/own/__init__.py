"""Finding a user's data below one folder, and checking it as training and scoring will see it, before hours are spent.

Wherever the libraries have a rule of their own (which files are listed, how an image is decoded, which boxes are used,
how they are scored), their code is called instead of a second version of it.
"""

from repnext_mm.data.own.class_folders import check_class_folders
from repnext_mm.data.own.coco import check_coco
from repnext_mm.data.own.detection import find_boxes
from repnext_mm.data.own.findings import Findings
from repnext_mm.data.own.label_maps import check_label_maps
from repnext_mm.data.own.layout import CocoSplit, MapSplit, find_class_folders, find_coco, find_label_maps

__all__ = [
    'CocoSplit',
    'Findings',
    'MapSplit',
    'check_class_folders',
    'check_coco',
    'check_label_maps',
    'find_boxes',
    'find_class_folders',
    'find_coco',
    'find_label_maps',
]
