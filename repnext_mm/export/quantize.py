"""int8 by ONNX Runtime's own quantizer, one file that ONNX Runtime and OpenVINO both run; or by NNCF, for OpenVINO.

Convolutions and products with weights are quantized, weights per channel, activations by the calibration images. In
float stay all that decodes, suppresses and cuts out boxes, which eight bits move by pixels, and depthwise convolutions:
ONNX Runtime's int8 kernels for them are slower than its float ones.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repnext_mm.errors import MissingPackageError, UserError
from repnext_mm.export.openers import KEY

QUANTIZERS = ('onnxruntime', 'nncf')
QUANTIZED = ('Conv', 'ConvTranspose', 'Gemm', 'MatMul')
QUANTIZED_IN_OPENVINO = {'Convolution', 'ConvolutionBackpropData', 'MatMul'}
NO_IMAGES = 'there are no images to calibrate with: give --data a folder of images, or a config with some'


def check_quantizer(quantizer: str, format: str) -> None:
    """The quantizer is known, is installed, and writes this format.

    Raises:
        MissingPackageError: NNCF is not installed.
        UserError: an unknown quantizer, or one that does not write the format.
    """
    if quantizer not in QUANTIZERS:
        raise UserError(f"unknown quantizer '{quantizer}': choose one of {', '.join(QUANTIZERS)}")
    if quantizer == 'nncf' and format != 'openvino':
        raise UserError(f"NNCF quantizes for OpenVINO, and the format is '{format}': end the name in .xml")
    if quantizer == 'nncf' and importlib.util.find_spec('nncf') is None:
        raise MissingPackageError("the quantizer 'nncf' is not installed: pip install nncf, or omit it")


def quantize_onnx(source: Path, path: Path, images: Iterable[np.ndarray]) -> int:
    """Write an ONNX file in int8; returns how many images calibrated it.

    Args:
        source: a float file, with what is known about it.
        path: where to.
        images: inputs of the network, ``(1, 3, H, W)`` of any sizes.

    Raises:
        UserError: there are no images.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self.name, self.count, self.images = name, 0, iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            if image is None:
                return None
            self.count += 1
            return {self.name: image}

    network = onnx.load(str(source))
    reader = Images(network.graph.input[0].name)
    with tempfile.TemporaryDirectory() as folder:
        clean = Path(folder) / 'clean.onnx'
        # symbolic shapes are not needed, and sizes that depend on the number of boxes have none
        quant_pre_process(str(source), str(clean), skip_symbolic_shape=True)
        quantize_static(
            str(clean),
            str(path),
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_exclude=in_float(onnx.load(str(clean))),
            per_channel=True,
            reduce_range=False,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    if not reader.count:
        raise UserError(NO_IMAGES)
    written = onnx.load(str(path))
    about = {entry.key: entry.value for entry in network.metadata_props}
    onnx.helper.set_model_props(written, {KEY: about[KEY]} if KEY in about else {})
    onnx.save(written, str(path))
    return reader.count


def quantize_openvino(source: Path, images: Iterable[np.ndarray]) -> tuple[Any, int]:
    """An ``openvino.Model`` in int8 by NNCF, which also corrects biases; and how many images calibrated it.

    Args:
        source: a float ONNX file.
        images: as in ``quantize_onnx``; all are held in memory.

    Raises:
        UserError: there are no images.
    """
    os.environ.setdefault('NNCF_CI', '1')  # read when it is imported: without it, each use is reported to its makers
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    calibration = list(images)  # it reads them several times
    if not calibration:
        raise UserError(NO_IMAGES)
    network = openvino.Core().read_model(str(source))
    kinds = {node.get_type_name() for node in network.get_ops()}
    others = nncf.IgnoredScope(
        types=sorted(kinds - QUANTIZED_IN_OPENVINO), names=sorted(_computed_products(network)), validate=False
    )
    quantized = nncf.quantize(
        network,
        nncf.Dataset(calibration),
        preset=nncf.QuantizationPreset.MIXED,  # ranges that need not be symmetric: behind GELU they are not
        subset_size=len(calibration),
        ignored_scope=others,
    )
    return quantized, len(calibration)


def _computed_products(network: Any) -> Iterator[str]:
    for node in network.get_ops():
        if node.get_type_name() == 'MatMul':
            sources = [each.get_source_output().get_node().get_type_name() for each in node.inputs()]
            if 'Constant' not in sources:
                yield node.get_friendly_name()


def in_float(network: Any) -> list[str]:
    """Names of the nodes that stay in float: depthwise convolutions, and products of two computed tensors."""
    weights = {weight.name: weight for weight in network.graph.initializer}
    names = []
    for node in network.graph.node:
        weight = weights.get(node.input[1]) if len(node.input) > 1 else None
        groups = next((entry.i for entry in node.attribute if entry.name == 'group'), 1)
        if node.op_type in QUANTIZED and (weight is None or (groups > 1 and groups == weight.dims[0])):
            names.append(node.name)
    return names


def signal_to_noise(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """In dB over all outputs: how much larger the expected ones are than what is wrong with them."""
    signal = sum(float(np.square(each.astype(np.float64)).sum()) for each in expected)
    noise = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(outputs, expected, strict=True))
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf
