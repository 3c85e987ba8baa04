"""Formats, the ends of their file names and the packages that they need."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SUFFIXES: dict[str, tuple[str, ...]] = {
    'onnx': ('.onnx',),
    'torchscript': ('.pt', '.torchscript'),
    'openvino': ('.xml',),
    'coreml': ('.mlpackage',),
}
PACKAGES: dict[str, tuple[str, ...]] = {
    'onnx': ('onnx', 'onnxruntime', 'onnxscript'),
    'torchscript': (),
    'openvino': ('onnx', 'onnxscript', 'openvino'),  # the way to OpenVINO leads through ONNX
    'coreml': ('coremltools',),
}


def format_of(path: str | Path) -> str:
    """The format that a file name asks for.

    Raises:
        ValueError: the name ends like no format's.
    """
    suffix = Path(path).suffix.lower()
    for format, suffixes in SUFFIXES.items():
        if suffix in suffixes:
            return format
    if suffix == '.mlmodel':
        raise ValueError(
            f"'{path}' would be a Core ML neuralnetwork, which Core ML superseded by programs (iOS 15, macOS 12) and "
            'which is not written here: let it end with .mlpackage, any later device runs it'
        )
    known = ', '.join(f'{"/".join(suffixes)} ({format})' for format, suffixes in SUFFIXES.items())
    raise ValueError(f"'{path}' does not name its format: let it end with {known}")


def check_format(format: str) -> None:
    """The format is known and its packages are there.

    Raises:
        ValueError: it is not, or they are not.
    """
    if format not in SUFFIXES:
        raise ValueError(f'unknown format {format!r}: choose one of {", ".join(SUFFIXES)}')
    missing = [package for package in PACKAGES[format] if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            f'format {format!r} needs {", ".join(missing)}, which {"is" if len(missing) == 1 else "are"} not '
            "installed: pip install 'repnext_mm[export]', or make env in a clone"
        )
