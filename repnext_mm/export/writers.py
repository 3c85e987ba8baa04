"""Writing a network in a format: what each converter wants to be told."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repnext_mm.export.graphs import Normalised

MIN_SIZE = 32  # pixels: what the last stage's stride needs
COREML_SIZE, COREML_BATCH = 2048, 64  # Core ML wants an upper bound
# torch made its newer exporter the default in 2.9; before, it fails on dynamic sizes or does not exist
NEW_EXPORTER = tuple(int(part) for part in torch.__version__.split('.')[:2]) >= (2, 9)
NEWER_OPSET = 18  # the first of the newer exporter; it converts to older ones, and the files do not open
OPSETS = range(11, 24 if NEW_EXPORTER else 18)  # 11: the first whose Resize computes what torch's does
DEFAULT_OPSET = 20 if NEW_EXPORTER else 17  # 20: the first with a Gelu; before, it is written as Erf

Writer = Callable[..., None]


def write_onnx(
    model: nn.Module,
    path: Path,
    *,
    example: Tensor,
    output_names: Sequence[str],
    dynamic: bool,
    opset: int | None = None,
    half: bool = False,
) -> None:
    """ONNX, with named dimensions ``batch``, ``height`` and ``width`` where they are dynamic.

    ``half`` stores the weights in float16; they are cast back before they are used.
    """
    opset = DEFAULT_OPSET if opset is None else opset
    names: dict[str, Any] = dict(input_names=['input'], output_names=list(output_names), opset_version=opset)
    if NEW_EXPORTER and opset >= NEWER_OPSET:
        size = torch.export.Dim
        sizes = {0: size('batch'), 2: size('height', min=MIN_SIZE), 3: size('width', min=MIN_SIZE)}
        options: dict[str, Any] = dict(dynamo=True, external_data=False, verbose=False)
        options['dynamic_shapes'] = (sizes,) if dynamic else None
    else:
        every = {0: 'batch', 2: 'height', 3: 'width'}
        options = dict(dynamo=False) if NEW_EXPORTER else {}  # torch 2.1 does not know the word
        options['dynamic_axes'] = {'input': every, **{name: {0: 'batch'} for name in output_names}} if dynamic else None
    with _quiet():
        torch.onnx.export(model, (example,), str(path), **names, **options)
    if half:
        _halve(path)


def write_torchscript(
    model: nn.Module, path: Path, *, example: Tensor, output_names: Sequence[str], dynamic: bool
) -> None:
    """TorchScript by tracing; its sizes are dynamic either way, and its outputs have no names."""
    with _quiet():
        torch.jit.save(traced(model, example), str(path))


def write_openvino(
    model: nn.Module,
    path: Path,
    *,
    example: Tensor,
    output_names: Sequence[str],
    dynamic: bool,
    half: bool = False,
) -> None:
    """OpenVINO IR, a ``.bin`` beside the ``.xml``, by way of ONNX; ``half`` stores the weights in float16."""
    # OpenVINO reads ONNX by itself; its convert_model reports every use to its makers unless told not to
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        between = Path(folder) / 'network.onnx'
        write_onnx(model, between, example=example, output_names=output_names, dynamic=dynamic)
        network = openvino.Core().read_model(str(between))
        for port, name in zip(network.outputs, output_names, strict=True):
            port.get_tensor().set_names({name})
        openvino.save_model(network, str(path), compress_to_fp16=half)


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


def _halve(path: Path) -> None:
    """Store the float32 weights of an ONNX file in float16, each with a cast back behind it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    network = onnx.load(str(path))
    casts = []
    for weight in network.graph.initializer:
        if weight.data_type != TensorProto.FLOAT:
            continue
        stored = f'{weight.name}.float16'
        casts.append(helper.make_node('Cast', [stored], [weight.name], f'{weight.name}.cast', to=TensorProto.FLOAT))
        with np.errstate(over='ignore'):  # what grows to infinity is found by the comparison
            values = numpy_helper.to_array(weight).astype(np.float16)
        weight.CopyFrom(numpy_helper.from_array(values, stored))
    nodes = [*casts, *network.graph.node]
    del network.graph.node[:], network.graph.value_info[:]
    network.graph.node.extend(nodes)
    onnx.save(network, str(path))


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
