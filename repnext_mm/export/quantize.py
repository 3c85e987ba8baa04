"""int8 by ONNX Runtime's own quantizer: one file that ONNX Runtime and OpenVINO both run.

Convolutions and products with weights are quantized, weights per channel, activations by the calibration images. In
float stay depthwise convolutions (ONNX Runtime's int8 kernels for them are slower than its float ones) and all that
decodes, suppresses and cuts out boxes, which eight bits move by pixels.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repnext_mm.errors import UserError
from repnext_mm.export.predict import KEY

QUANTIZED = ('Conv', 'ConvTranspose', 'Gemm', 'MatMul')


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
        raise UserError('there are no images to calibrate with: give --data a folder of images, or a config with some')
    written = onnx.load(str(path))
    about = {entry.key: entry.value for entry in network.metadata_props}
    onnx.helper.set_model_props(written, {KEY: about[KEY]} if KEY in about else {})
    onnx.save(written, str(path))
    return reader.count


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
