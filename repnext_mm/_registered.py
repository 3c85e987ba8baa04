"""Registers everything that configs name when it is imported: by the package, or by its command before a verb runs."""

from importlib import import_module
from importlib.util import find_spec

from repnext_mm import data, models, training  # noqa: F401

if find_spec('cv2') is not None:  # mmengine's hooks and Runner import OpenCV, which mmengine-lite comes without
    import_module('repnext_mm.hooks')
