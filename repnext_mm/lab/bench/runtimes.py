"""A network made ready to run on one image: in PyTorch, compiled, as a CUDA graph, or exported to another runtime."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repnext_mm.errors import UserError
from repnext_mm.export.formats import PACKAGES

Run = Callable[[], Sequence[Tensor]]

EXPORTED = {'onnxruntime': 'onnx'} | {
    format: format for format in ('openvino', 'torchscript', 'ncnn', 'mnn', 'executorch', 'litert', 'coreai')
}
"""Runtimes that run a file, with the format of ``repnext_mm.export`` that they read."""

QUANTIZED = ('onnxruntime', 'openvino')
"""Those that run files in int8."""

RUNTIMES = ('eager', 'compile', 'cudagraph', *EXPORTED)

NATIVE = 'native'  # the precision that OpenVINO is fastest in: bfloat16 where the processor multiplies it in hardware
INT8 = 'int8'  # quantized as `repnext export --int8` does it, calibrated on the image that is timed
INT8_NNCF = 'int8-nncf'  # as with its `--quantizer nncf`, for OpenVINO alone
DTYPES = {
    'float32': torch.float32,
    'bfloat16': torch.bfloat16,
    'float16': torch.float16,
    NATIVE: torch.float32,
    INT8: torch.float32,
    INT8_NNCF: torch.float32,
}
"""Names of precisions, with the dtype of the tensors that go in."""

MEMORY_FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}


def why_not(runtime: str, *, device: str, dtype: str, memory_format: str, tf32: bool = False) -> str | None:
    """Why a combination cannot be measured here, as the rest of a sentence; None when it can.

    Raises:
        UserError: an unknown name.
    """
    for kind, name, known in (
        ('runtime', runtime, RUNTIMES),
        ('dtype', dtype, DTYPES),
        ('memory format', memory_format, MEMORY_FORMATS),
    ):
        if name not in known:
            raise UserError(f'unknown {kind} {name!r}: choose from {", ".join(known)}')
    if dtype == NATIVE and runtime != 'openvino':
        return 'only OpenVINO chooses its precision itself'
    if dtype == INT8_NNCF:
        if runtime != 'openvino':
            return 'NNCF quantizes for OpenVINO'
        if importlib.util.find_spec('nncf') is None:
            return 'nncf is not installed'
    if dtype == INT8 and runtime not in QUANTIZED:
        return f'int8 runs in {" and ".join(QUANTIZED)}'
    if device == 'cpu':
        if runtime == 'cudagraph':
            return 'CUDA graphs need --device cuda'
        if runtime == 'compile' and _cpp_compiler() is None:
            return 'torch.compile needs a C++ compiler on a CPU: install g++ or name one in CXX'
        if tf32:
            return 'TF32 is a format of GPUs'
    if runtime in EXPORTED:
        missing = [name for name in PACKAGES[EXPORTED[runtime]] if importlib.util.find_spec(name) is None]
        if missing:
            return f'{missing[0]} is not installed'
        if device != 'cpu':
            return 'exported files run on the CPU here'
        if dtype not in ('float32', NATIVE, INT8, INT8_NNCF):
            return f'exported files are float32 or {INT8} here ({NATIVE} lets OpenVINO compute in bfloat16)'
        if memory_format != 'contiguous':
            return 'the runtime chooses its own memory format'
    return None


def prepare(network: nn.Module, image: Tensor, *, runtime: str, threads: int, dtype: str = 'float32') -> Run:
    """Make a network ready to run on ``image``; dtype, device and memory format of both agree already.

    ``dtype`` says what only an exported file can be told: ``NATIVE``, ``INT8`` or ``INT8_NNCF``.
    """
    if runtime in EXPORTED:
        return _exported(network, image, EXPORTED[runtime], threads, dtype)
    if runtime == 'cudagraph':
        return captured(lambda: network(image))
    if runtime == 'compile':
        compiled: Any = torch.compile(network, dynamic=False)
        return lambda: compiled(image)
    return lambda: network(image)


def _exported(network: nn.Module, image: Tensor, format: str, threads: int, dtype: str) -> Run:
    from repnext_mm.export import open_exported

    with tempfile.TemporaryDirectory(prefix='benchmark-', ignore_cleanup_errors=True) as folder:
        path = write_exported(network, image, folder, format=format, dtype=dtype)
        opened = open_exported(
            path, format=format, threads=threads, precision='native' if dtype == NATIVE else 'float32'
        )
    return lambda: opened(image)


def write_exported(network: nn.Module, image: Tensor, folder: str | Path, *, format: str, dtype: str) -> Path:
    """Write a network in a format of ``repnext_mm.export``, for images of one size, into a folder; returns the file."""
    from repnext_mm.export import SUFFIXES, export_model
    from repnext_mm.export.formats import onnx_to_openvino, save_openvino
    from repnext_mm.export.quantize import quantize_onnx, quantize_openvino

    given: dict[str, Any] = {'shape': tuple(image.shape), 'dynamic': False}
    path = Path(folder) / f'model{SUFFIXES[format][0]}'
    if dtype not in (INT8, INT8_NNCF):
        export_model(network, path, format=format, **given)
        return path
    whole, quantized = Path(folder) / 'float.onnx', Path(folder) / 'int8.onnx'
    names = list(export_model(network, whole, format='onnx', **given).errors)
    if dtype == INT8_NNCF:
        save_openvino(quantize_openvino(whole, [image.numpy()])[0], path, output_names=names)
        return path
    quantize_onnx(whole, quantized, [image.numpy()])
    if format == 'onnx':
        return quantized
    onnx_to_openvino(quantized, path, output_names=names)
    return path


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """What ``call`` starts on the GPU, as one CUDA graph: replaying it returns the same tensors, filled anew.

    It is called four times; no part of it may wait for the GPU. Each graph has its own memory.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries initialize and choose kernels before the capture, which forbids both
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.reset_peak_memory_stats()  # what the warm-up tried out does not count
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()

    def replay() -> Any:
        graph.replay()
        return outputs

    return replay


def _cpp_compiler() -> str | None:
    return shutil.which(os.environ.get('CXX', 'g++')) or shutil.which('clang++')
