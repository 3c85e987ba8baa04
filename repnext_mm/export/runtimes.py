"""Running an exported file in its own runtime, on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repnext_mm.export.suffix import check_format

Run = Callable[[Tensor], tuple[Tensor, ...]]
PRECISIONS = ('float32', 'native')


def open_exported(path: str | Path, *, format: str, threads: int | None = None, precision: str = 'float32') -> Run:
    """A function from an image ``(N, C, H, W)`` to the outputs of an exported network.

    Args:
        path: what ``export_model`` wrote.
        format: ``'onnx'`` (ONNX Runtime, idle threads do not spin), ``'torchscript'`` or ``'openvino'`` (latency
            hint).
        threads: of one run; None leaves it to the runtime. TorchScript shares PyTorch's, which are then set for the
            whole process.
        precision: ``'native'`` lets OpenVINO compute in what the processor is fastest at (bfloat16 where it has
            instructions for it), which costs four digits; the others compute in float32 either way.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the format has no runtime here, an option is unknown, or a package is missing.
    """
    if format not in RUNTIMES:
        raise ValueError(f'format {format!r} has no runtime here: {", ".join(RUNTIMES)} have one')
    if precision not in PRECISIONS:
        raise ValueError(f'unknown precision {precision!r}: choose one of {", ".join(PRECISIONS)}')
    if threads is not None and threads < 1:
        raise ValueError(f'threads={threads} computes nothing: give at least 1, or None for the default')
    check_format(format)
    if not Path(path).is_file():
        raise FileNotFoundError(f'no exported network at {path}: export_model writes one')
    return RUNTIMES[format](str(path), threads, precision)


def _open_onnx(path: str, threads: int | None, precision: str) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    # A spinning thread takes a core away from whatever runs next in this process.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    options.add_session_config_entry('session.inter_op.allow_spinning', '0')
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    (entry,) = session.get_inputs()

    def run(image: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(None, {entry.name: _array(image)})))

    return run


def _open_torchscript(path: str, threads: int | None, precision: str) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # torch would have everyone move on from TorchScript
        network = torch.jit.load(path, map_location='cpu').eval()
    if threads is not None:
        torch.set_num_threads(threads)

    @torch.no_grad()
    def run(image: Tensor) -> tuple[Tensor, ...]:
        output = network(image)
        return output if isinstance(output, tuple) else (output,)

    return run


def _open_openvino(path: str, threads: int | None, precision: str) -> Run:
    import openvino

    options: dict[str, Any] = {'PERFORMANCE_HINT': 'LATENCY'}
    if precision == 'float32':
        options['INFERENCE_PRECISION_HINT'] = 'f32'
    if threads is not None:
        options['INFERENCE_NUM_THREADS'] = threads
    network = openvino.Core().compile_model(path, 'CPU', options)

    def run(image: Tensor) -> tuple[Tensor, ...]:
        outputs = network(_array(image))
        return tuple(torch.from_numpy(outputs[port]) for port in network.outputs)

    return run


def _array(image: Tensor) -> Any:
    return image.detach().cpu().contiguous().numpy()


RUNTIMES: dict[str, Callable[[str, int | None, str], Run]] = {
    'onnx': _open_onnx,
    'torchscript': _open_torchscript,
    'openvino': _open_openvino,
}
