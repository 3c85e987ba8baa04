"""Exported networks: ONNX, TorchScript, OpenVINO and Core ML, each compared with the network it came from."""

from .choose import Choice, choose_form
from .parts import PARTS, Part, load_part
from .run import ExportedPart, export_part
from .runtimes import RUNTIMES, open_exported
from .suffix import SUFFIXES, format_of
from .write import ExportReport, export_model
from .writers import DEFAULT_OPSET, OPSETS

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
