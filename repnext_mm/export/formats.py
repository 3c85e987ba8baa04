"""Formats: the ends of their names, their packages, how each is written and how it runs."""

from __future__ import annotations

import importlib.util
import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repnext_mm.errors import MissingFileError, MissingPackageError, UserError
from repnext_mm.export import mobile
from repnext_mm.export.graphs import Normalized, Signature, quiet, traced
from repnext_mm.export.openers import KEY, OPENERS, SUFFIXES, format_by_name, is_there, open_runtime

PACKAGES: dict[str, tuple[str, ...]] = {
    'onnx': ('onnx', 'onnxruntime', 'onnxscript'),
    'torchscript': (),
    'openvino': ('onnx', 'onnxscript', 'openvino'),  # the way to OpenVINO leads through ONNX
    'coreml': ('coremltools',),
    'ncnn': ('ncnn', 'pnnx'),
    'mnn': ('MNN', 'onnx', 'onnxscript'),  # by way of ONNX too
    'executorch': ('executorch', 'torchao'),
    'litert': ('litert_torch', 'ai_edge_litert'),
    'coreai': ('coreai_torch', 'coreai'),
}


def format_of(path: str | Path) -> str:
    """The format that a file name asks for.

    Raises:
        UserError: it ends like that of no format.
    """
    format = format_by_name(path)
    if format is not None:
        return format
    if str(path).lower().endswith('.mlmodel'):
        raise UserError(
            f"'{path}' would be a Core ML neuralnetwork, which Core ML superseded by programs (iOS 15, macOS 12) and "
            'which is not written here: let it end with .mlpackage, any later device runs it'
        )
    known = ', '.join(f'{"/".join(suffixes)} ({format})' for format, suffixes in SUFFIXES.items())
    raise UserError(f"'{path}' does not name its format: let it end with {known}")


def check_format(format: str) -> None:
    """The format is known and its packages are there.

    Raises:
        UserError: it is not, or they are not.
    """
    if format not in SUFFIXES:
        raise UserError(f'unknown format {format!r}: choose one of {", ".join(SUFFIXES)}')
    mobile.check_torch(format)
    missing = [package for package in PACKAGES[format] if importlib.util.find_spec(package) is None]
    if missing:
        where = mobile.INSTALL.get(format, "pip install 'repnext_mm[export]', or make env in a clone")
        raise MissingPackageError(
            f'format {format!r} needs {", ".join(missing)}, which {"is" if len(missing) == 1 else "are"} not '
            f'installed: {where}'
        )


MIN_SIZE = 32  # pixels: what the last stage's stride needs
COREML_SIZE, COREML_BATCH = 2048, 64  # Core ML wants an upper bound
# torch made its newer exporter the default in 2.9; before, it fails on dynamic sizes or does not exist
NEW_EXPORTER = tuple(int(part) for part in torch.__version__.split('.')[:2]) >= (2, 9)
NEWER_OPSET = 18  # the first of the newer exporter; it converts to older ones, and the files do not open
OPSETS = range(11, 24 if NEW_EXPORTER else 18)  # 11: the first whose Resize computes what torch's does
DETECTOR_OPSETS = range(16, 18)  # traced: the newer exporter takes ten times as long for numbers of boxes
MNN_OPSET = 17  # the last whose Gelu is written as Erf
DEFAULT_OPSET = 20 if NEW_EXPORTER else 17  # 20: the first with a Gelu; before, it is written as Erf

Writer = Callable[..., None]


def write_onnx(
    model: nn.Module,
    path: Path,
    signature: Signature,
    *,
    opset: int | None = None,
    half: bool = False,
) -> None:
    """ONNX, with named dimensions ``batch``, ``height`` and ``width`` where they are dynamic.

    ``half`` stores the weights in float16; they are cast back before they are used.
    """
    opset = (DEFAULT_OPSET if signature.batched else DETECTOR_OPSETS[-1]) if opset is None else opset
    names: dict[str, Any] = dict(input_names=['input'], output_names=list(signature.output_names), opset_version=opset)
    if NEW_EXPORTER and opset >= NEWER_OPSET:
        size = torch.export.Dim
        sizes = {0: size('batch'), 2: size('height', min=MIN_SIZE), 3: size('width', min=MIN_SIZE)}
        options: dict[str, Any] = dict(dynamo=True, external_data=False, verbose=False)
        options['dynamic_shapes'] = (sizes,) if signature.dynamic else None
    else:
        options = dict(dynamo=False) if NEW_EXPORTER else {}  # torch 2.1 does not know the word
        options['dynamic_axes'] = _dynamic_axes(signature) or None
    with quiet():
        torch.onnx.export(model, (signature.example,), str(path), **names, **options)
    if half:
        _halve(path)
    if signature.about:
        add_about(path, signature.about)


def write_torchscript(
    model: nn.Module,
    path: Path,
    signature: Signature,
) -> None:
    """TorchScript by tracing; its sizes are dynamic either way, and its outputs have no names."""
    with quiet():
        about = json.dumps(signature.about)
        torch.jit.save(traced(model, signature.example), str(path), _extra_files={KEY: about})


def write_openvino(
    model: nn.Module,
    path: Path,
    signature: Signature,
    *,
    half: bool = False,
) -> None:
    """OpenVINO IR, a ``.bin`` beside the ``.xml``, by way of ONNX; ``half`` stores the weights in float16."""
    with tempfile.TemporaryDirectory() as folder:
        between = Path(folder) / 'network.onnx'
        write_onnx(model, between, replace(signature, about={}))
        onnx_to_openvino(between, path, output_names=signature.output_names, about=signature.about, half=half)


def onnx_to_openvino(
    source: Path,
    path: Path,
    *,
    output_names: Sequence[str],
    about: Mapping[str, Any] | None = None,
    half: bool = False,
) -> None:
    """OpenVINO IR of an ONNX file."""
    # OpenVINO reads ONNX by itself; its convert_model reports every use to its makers unless told not to
    import openvino

    save_openvino(openvino.Core().read_model(str(source)), path, output_names=output_names, about=about, half=half)


def save_openvino(
    network: Any,
    path: Path,
    *,
    output_names: Sequence[str],
    about: Mapping[str, Any] | None = None,
    half: bool = False,
) -> None:
    """A model of OpenVINO with the names of its outputs and what is known about it."""
    import openvino

    for port, name in zip(network.outputs, output_names, strict=True):
        port.get_tensor().set_names({name})
    if about:
        network.set_rt_info(json.dumps(about), [KEY])
    openvino.save_model(network, str(path), compress_to_fp16=half)


def write_mnn(
    model: nn.Module,
    path: Path,
    signature: Signature,
) -> None:
    """MNN, by way of ONNX."""
    with tempfile.TemporaryDirectory() as folder:
        between = Path(folder) / 'network.onnx'
        write_onnx(model, between, replace(signature, about={}), opset=MNN_OPSET)
        mobile.onnx_to_mnn(between, path)


def write_coreml(
    model: nn.Module,
    path: Path,
    signature: Signature,
) -> None:
    """A Core ML program; the input of a ``Normalized`` model is an image in RGB, one at a time."""
    logging.getLogger('coremltools').setLevel(logging.ERROR)  # it warns of every library newer than itself
    with quiet():
        import coremltools

        batch, channels, height, width = signature.example.shape
        sizes: list[Any] = [height, width]
        if signature.dynamic:
            sizes = [coremltools.RangeDim(MIN_SIZE, max(COREML_SIZE, size), size) for size in sizes]
        if isinstance(model, Normalized):
            rgb = coremltools.colorlayout.RGB
            entry = coremltools.ImageType('image', shape=(1, channels, *sizes), color_layout=rgb)
        else:
            images = coremltools.RangeDim(1, max(COREML_BATCH, batch), batch) if signature.dynamic else batch
            entry = coremltools.TensorType('input', shape=(images, channels, *sizes))
        program = coremltools.convert(
            traced(model, signature.example),
            inputs=[entry],
            outputs=[coremltools.TensorType(name) for name in signature.output_names],
            convert_to='mlprogram',
            skip_model_load=True,  # only macOS can
        )
        if signature.about:
            program.user_defined_metadata[KEY] = json.dumps(signature.about)
        program.save(str(path))


def add_about(path: Path, about: Mapping[str, Any]) -> None:
    """Write what ``predict`` needs to know into an ONNX file."""
    import onnx

    network = onnx.load(str(path))
    onnx.helper.set_model_props(network, {KEY: json.dumps(about)})
    onnx.save(network, str(path))


def _dynamic_axes(signature: Signature) -> dict[str, dict[int, str]]:
    """The names of the axes whose sizes are open, as the older exporter takes them."""
    axes = {'input': {2: 'height', 3: 'width'}} if signature.dynamic else {}
    if signature.dynamic and signature.batched:
        axes['input'][0] = 'batch'
        axes |= {name: {0: 'batch'} for name in signature.output_names}
    elif not signature.batched:
        axes |= {name: {0: 'objects'} for name in signature.output_names}
        if 'masks' in axes:
            axes['masks'] |= {1: 'mask_height', 2: 'mask_width'}
    return axes


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


WRITERS: dict[str, Writer] = {
    'onnx': write_onnx,
    'torchscript': write_torchscript,
    'openvino': write_openvino,
    'coreml': write_coreml,
    'ncnn': mobile.write_ncnn,
    'mnn': write_mnn,
    'executorch': mobile.write_executorch,
    'litert': mobile.write_litert,
    'coreai': mobile.write_coreai,
}


Run = Callable[[Tensor], tuple[Tensor, ...]]
PRECISIONS = ('float32', 'native')
RUNTIMES = tuple(OPENERS)
"""Formats that run here."""


def open_exported(path: str | Path, *, format: str, threads: int | None = None, precision: str = 'float32') -> Run:
    """A function from an image ``(N, C, H, W)`` to the outputs of an exported network.

    Args:
        path: what ``export_model`` wrote.
        format: ``'onnx'`` (ONNX Runtime, idle threads do not spin), ``'torchscript'``, ``'openvino'`` (latency
            hint), ``'ncnn'`` (one image at a time), ``'mnn'``, ``'executorch'``, ``'litert'`` or ``'coreai'``.
        threads: of one run; None leaves it to the runtime. TorchScript shares PyTorch's, and ExecuTorch has its own
            for all files: these are then set for the whole process.
        precision: ``'native'`` lets OpenVINO, ncnn and MNN compute in what the processor is fastest at (half precision
            where it has instructions for it), which costs four digits; the others compute in float32 either way.

    Raises:
        UserError: there is no such file, the format has no runtime here, an option is unknown, or a package is missing.
    """
    if format not in RUNTIMES:
        raise UserError(f'format {format!r} has no runtime here: {", ".join(RUNTIMES)} have one')
    if precision not in PRECISIONS:
        raise UserError(f'unknown precision {precision!r}: choose one of {", ".join(PRECISIONS)}')
    if threads is not None and threads < 1:
        raise UserError(f'threads={threads} computes nothing: give at least 1, or None for the default')
    check_format(format)
    if not is_there(path, format):
        raise MissingFileError(f'no exported network at {path}: export_model writes one')
    called, _ = open_runtime(path, format, threads=threads, native=precision == 'native')

    def run(image: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, called(image.detach().cpu().contiguous().numpy())))

    return run
