"""Writing a network in a format: what each converter wants to be told."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .graphs import Normalised

MIN_SIZE = 32  # pixels: what the last stage's stride needs
COREML_SIZE, COREML_BATCH = 2048, 64  # Core ML wants an upper bound
TORCHSCRIPT_OPSET = 17  # the latest that torch 2.1 writes
# torch made its newer exporter the default in 2.9; before, it fails on dynamic sizes or does not exist
NEW_EXPORTER = tuple(int(part) for part in torch.__version__.split('.')[:2]) >= (2, 9)

Writer = Callable[..., None]


def write_onnx(model: nn.Module, path: Path, *, example: Tensor, output_names: Sequence[str], dynamic: bool) -> None:
    """ONNX, with named dimensions ``batch``, ``height`` and ``width`` where they are dynamic."""
    names: dict[str, Any] = dict(input_names=['input'], output_names=list(output_names))
    if NEW_EXPORTER:
        size = torch.export.Dim
        sizes = {0: size('batch'), 2: size('height', min=MIN_SIZE), 3: size('width', min=MIN_SIZE)}
        options: dict[str, Any] = dict(dynamo=True, external_data=False, verbose=False)
        options['dynamic_shapes'] = (sizes,) if dynamic else None
    else:
        every = {0: 'batch', 2: 'height', 3: 'width'}
        options = dict(opset_version=TORCHSCRIPT_OPSET)
        options['dynamic_axes'] = {'input': every, **{name: {0: 'batch'} for name in output_names}} if dynamic else None
    with _quiet():
        torch.onnx.export(model, (example,), str(path), **names, **options)


def write_torchscript(
    model: nn.Module, path: Path, *, example: Tensor, output_names: Sequence[str], dynamic: bool
) -> None:
    """TorchScript by tracing; its sizes are dynamic either way, and its outputs have no names."""
    with _quiet():
        torch.jit.save(traced(model, example), str(path))


def write_openvino(
    model: nn.Module, path: Path, *, example: Tensor, output_names: Sequence[str], dynamic: bool
) -> None:
    """OpenVINO IR in float32, a ``.bin`` beside the ``.xml``, by way of ONNX."""
    # OpenVINO reads ONNX by itself; its convert_model reports every use to its makers unless told not to
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        between = Path(folder) / 'network.onnx'
        write_onnx(model, between, example=example, output_names=output_names, dynamic=dynamic)
        network = openvino.Core().read_model(str(between))
        for port, name in zip(network.outputs, output_names, strict=True):
            port.get_tensor().set_names({name})
        openvino.save_model(network, str(path), compress_to_fp16=False)


def write_coreml(model: nn.Module, path: Path, *, example: Tensor, output_names: Sequence[str], dynamic: bool) -> None:
    """A Core ML program; the input of a ``Normalised`` model is an image in RGB, one at a time."""
    logging.getLogger('coremltools').setLevel(logging.ERROR)  # it warns of every library newer than itself
    with _quiet():
        import coremltools

        batch, channels, height, width = example.shape
        sizes: list[Any] = [height, width]
        if dynamic:
            sizes = [coremltools.RangeDim(MIN_SIZE, max(COREML_SIZE, size), size) for size in sizes]
        if isinstance(model, Normalised):
            rgb = coremltools.colorlayout.RGB
            entry = coremltools.ImageType('image', shape=(1, channels, *sizes), color_layout=rgb)
        else:
            images = coremltools.RangeDim(1, max(COREML_BATCH, batch), batch) if dynamic else batch
            entry = coremltools.TensorType('input', shape=(images, channels, *sizes))
        program = coremltools.convert(
            traced(model, example),
            inputs=[entry],
            outputs=[coremltools.TensorType(name) for name in output_names],
            convert_to='mlprogram',
            skip_model_load=True,  # only macOS can
        )
        program.save(str(path))


def traced(model: nn.Module, example: Tensor) -> Any:
    """The TorchScript trace of a model; ``parity`` judges it, not torch's own check."""
    with _quiet(), torch.no_grad():
        return torch.jit.trace(model, example, check_trace=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Converters warn of their own insides and of their successors; the comparison afterwards is what counts."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


WRITERS: dict[str, Writer] = {
    'onnx': write_onnx,
    'torchscript': write_torchscript,
    'openvino': write_openvino,
    'coreml': write_coreml,
}
