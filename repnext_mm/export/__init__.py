"""Exported networks: ONNX, TorchScript, OpenVINO and Core ML, each compared with the network it came from."""

from repnext_mm.export.choose import Choice, choose_form
from repnext_mm.export.parts import PARTS, Part, load_part
from repnext_mm.export.run import ExportedPart, export_part
from repnext_mm.export.runtimes import RUNTIMES, open_exported
from repnext_mm.export.suffix import SUFFIXES, format_of
from repnext_mm.export.write import ExportReport, export_model
from repnext_mm.export.writers import DEFAULT_OPSET, OPSETS

__all__ = [
    'DEFAULT_OPSET',
    'OPSETS',
    'PARTS',
    'RUNTIMES',
    'SUFFIXES',
    'Choice',
    'ExportReport',
    'ExportedPart',
    'Part',
    'choose_form',
    'export_model',
    'export_part',
    'format_of',
    'load_part',
    'open_exported',
]
