"""Exported files, opened in their runtimes: from numpy to numpy, without torch but for PyTorch's own two formats.

``predict`` stands on this module alone, and neither imports another of ours, so that both can be copied beside a file.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

if __package__:
    from repnext_mm.errors import UserError
else:  # copied, or started by its path

    class UserError(ValueError):  # type: ignore[no-redef]
        """What a user did wrong, in one sentence."""


Array = np.ndarray
Run = Callable[[Array], tuple[Array, ...]]

KEY = 'repnext_mm'
"""Of what is known about a file, as JSON, in its metadata."""

SUFFIXES: dict[str, tuple[str, ...]] = {
    'onnx': ('.onnx',),
    'torchscript': ('.pt', '.torchscript'),
    'openvino': ('.xml',),
    'coreml': ('.mlpackage',),
    'ncnn': ('.ncnn.param',),  # as pnnx has it
    'mnn': ('.mnn',),
    'executorch': ('.pte',),
    'litert': ('.tflite',),
    'coreai': ('.aimodel',),
}
FOLDERS = ('coreml', 'coreai')
"""Formats whose file is a folder."""
BESIDE = ('ncnn', 'mnn', 'executorch', 'litert')
"""Formats without metadata of ours: what is known stands beside the file, see ``beside``."""


def format_by_name(path: str | Path) -> str | None:
    """The format that the end of a name says; None of another end."""
    name = Path(path).name.lower()
    return next((format for format, ends in SUFFIXES.items() if name.endswith(ends) and name not in ends), None)


def is_there(path: str | Path, format: str) -> bool:
    """Whether there is a file, or a folder, of a format."""
    return Path(path).is_dir() if format in FOLDERS else Path(path).is_file()


def beside(path: Path) -> Path:
    """Where what is known about a file of ``BESIDE`` stands."""
    return path.with_name(f'{path.name}.json')


def ncnn_weights(path: Path) -> Path:
    """The ``.ncnn.bin`` of a ``.ncnn.param``."""
    return path.with_name(path.name.removesuffix('.param') + '.bin')


def open_runtime(
    path: str | Path, format: str, *, threads: int | None = None, streams: int = 1, native: bool = False
) -> tuple[Run, dict[str, Any]]:
    """A function from the network's input (N, C, H, W) to its outputs, and what is known about the file.

    Args:
        path: of the file.
        format: a key of ``OPENERS``.
        threads: of one run; None leaves it to the runtime. TorchScript and ExecuTorch have theirs for all files in the
            process, and Core AI chooses.
        streams: threads from which it is called at the same time.
        native: let OpenVINO, ncnn and MNN compute in what the processor is fastest at; float32 otherwise.
    """
    run, about = OPENERS[format](Path(path), threads, streams, native)
    if format in BESIDE and beside(Path(path)).is_file():
        about = beside(Path(path)).read_text()
    return run, json.loads(about) if about else {}


def _open_onnx(path: Path, threads: int | None, streams: int, native: bool) -> tuple[Run, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    # a spinning thread takes a core away from whatever runs next in this process
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    options.add_session_config_entry('session.inter_op.allow_spinning', '0')
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    (entry,) = session.get_inputs()
    about = session.get_modelmeta().custom_metadata_map.get(KEY, '')
    return lambda image: tuple(session.run(None, {entry.name: image})), about


def _open_openvino(path: Path, threads: int | None, streams: int, native: bool) -> tuple[Run, str]:
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    about = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else ''
    # bfloat16, which it would choose where the processor multiplies it, moves boxes where nothing is done about it
    careful = bool(about) and json.loads(about).get('precision') == 'bfloat16'
    options: dict[str, Any] = {} if native else {'INFERENCE_PRECISION_HINT': 'f32'}
    if careful and multiplies_bfloat16():
        options = {'INFERENCE_PRECISION_HINT': 'bf16'}
    options |= {'NUM_STREAMS': streams} if streams > 1 else {'PERFORMANCE_HINT': 'LATENCY'}
    if threads is not None:
        options['INFERENCE_NUM_THREADS'] = threads * streams
    compiled = core.compile_model(model, 'CPU', options)

    def opened() -> Run:
        request = compiled.create_infer_request()

        def run(image: Array) -> tuple[Array, ...]:
            outputs = request.infer([image])
            return tuple(np.array(outputs[port]) for port in compiled.outputs)

        return run

    return _one_per_thread(opened), about


def multiplies_bfloat16() -> bool:
    """Whether the processor does; elsewhere OpenVINO computes in float32."""
    import openvino

    return 'BF16' in openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')


def _open_torchscript(path: Path, threads: int | None, streams: int, native: bool) -> tuple[Run, str]:
    import torch

    extra = {KEY: ''}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # torch would have everyone move on from TorchScript
        network = torch.jit.load(str(path), map_location='cpu', _extra_files=extra).eval()
    if threads is not None:
        torch.set_num_threads(threads)

    @torch.no_grad()
    def run(image: Array) -> tuple[Array, ...]:
        outputs = network(torch.from_numpy(image))
        return tuple(output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,)))

    about: Any = extra[KEY]  # bytes, from the file
    return run, about.decode() if isinstance(about, bytes) else about


def _open_ncnn(path: Path, threads: int | None, streams: int, native: bool) -> tuple[Run, str]:
    import ncnn

    network = ncnn.Net()
    if not native:
        for option in ('fp16_packed', 'fp16_storage', 'fp16_arithmetic', 'bf16_storage'):
            setattr(network.opt, f'use_{option}', False)
    if threads is not None:
        network.opt.num_threads = threads
    if network.load_param(str(path)) or network.load_model(str(ncnn_weights(path))):
        raise RuntimeError(f'ncnn does not have every layer of {path.name}')
    names = [f'out{index}' for index in range(len(network.output_names()))]

    def run(image: Array) -> tuple[Array, ...]:
        if len(image) != 1:
            raise UserError(f'ncnn takes one image at a time, not {len(image)}: call it once for each')
        extractor = network.create_extractor()
        extractor.input('in0', ncnn.Mat(np.ascontiguousarray(image[0])).clone())
        found = [extractor.extract(name) for name in names]
        if any(status for status, _ in found):
            raise RuntimeError(f'ncnn does not compute {path.name} at {tuple(image.shape)}')
        return tuple(np.array(output)[None] for _, output in found)

    return run, ''


def _open_mnn(path: Path, threads: int | None, streams: int, native: bool) -> tuple[Run, str]:
    import MNN.expr
    import MNN.nn

    options: dict[str, Any] = {'backend': 'CPU', 'precision': 'normal' if native else 'high'}
    options |= {} if threads is None else {'numThread': threads}
    layout = MNN.expr.NCHW

    def opened() -> Run:
        runtime = MNN.nn.create_runtime_manager((options,))
        network = MNN.nn.load_module_from_file(str(path), [], [], runtime_manager=runtime)

        def run(image: Array) -> tuple[Array, ...]:
            outputs = network.forward([MNN.expr.const(image, list(image.shape), layout)])
            return tuple(MNN.expr.convert(output, layout).read().copy() for output in outputs)

        return run

    return _one_per_thread(opened), ''


def _open_executorch(path: Path, threads: int | None, streams: int, native: bool) -> tuple[Run, str]:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime
    if threads is not None:
        portable_lib._unsafe_reset_threadpool(threads)

    def opened() -> Run:
        method = Runtime.get().load_program(str(path)).load_method('forward')

        def run(image: Array) -> tuple[Array, ...]:
            outputs = method.execute((torch.from_numpy(np.ascontiguousarray(image)),))
            return tuple(output.numpy().copy() for output in outputs)  # they are its own memory

        return run

    return _one_per_thread(opened), ''


def _open_litert(path: Path, threads: int | None, streams: int, native: bool) -> tuple[Run, str]:
    from ai_edge_litert.interpreter import Interpreter

    def opened() -> Run:
        network = Interpreter(str(path), num_threads=threads)
        network.allocate_tensors()
        (entry,) = network.get_input_details()
        outputs = [output['index'] for output in network.get_output_details()]

        def run(image: Array) -> tuple[Array, ...]:
            network.set_tensor(entry['index'], image)
            network.invoke()
            return tuple(network.get_tensor(index) for index in outputs)

        return run

    return _one_per_thread(opened), ''


def _open_coreai(path: Path, threads: int | None, streams: int, native: bool) -> tuple[Run, str]:
    """Outside of Apple's systems, its reference for the CPU."""
    import asyncio

    from coreai.authoring import AIModelAsset
    from coreai.runtime import NDArray

    asset = AIModelAsset.load(path)

    async def loaded() -> Any:
        async with asset.executable() as model:
            (name,) = model.function_names
            return model.load_function(name)

    def opened() -> Run:
        loop = asyncio.new_event_loop()
        function = loop.run_until_complete(loaded())
        names = function.desc.output_names

        def run(image: Array) -> tuple[Array, ...]:
            outputs = loop.run_until_complete(function({'input': NDArray(image)}))
            return tuple(outputs[name].numpy().copy() for name in names)

        return run

    return _one_per_thread(opened), asset.metadata.creator_defined_metadata.get(KEY, '')


def _one_per_thread(opened: Callable[[], Run]) -> Run:
    """What runs one image at a time, made anew for each thread; for this one, now."""
    local = threading.local()
    local.run = opened()

    def run(image: Array) -> tuple[Array, ...]:
        if not hasattr(local, 'run'):
            local.run = opened()
        outputs: tuple[Array, ...] = local.run(image)
        return outputs

    return run


OPENERS: dict[str, Callable[[Path, int | None, int, bool], tuple[Run, str]]] = {
    'onnx': _open_onnx,
    'torchscript': _open_torchscript,
    'openvino': _open_openvino,
    'ncnn': _open_ncnn,
    'mnn': _open_mnn,
    'executorch': _open_executorch,
    'litert': _open_litert,
    'coreai': _open_coreai,
}
