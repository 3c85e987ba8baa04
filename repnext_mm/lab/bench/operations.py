"""Time by kind of operation, as each runtime's own profiler tells it."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

POINTWISE, DEPTHWISE, STEM = '1x1 convolutions', 'depthwise convolutions', 'stem'
ACTIVATION, NORMS, ADDITIONS, COPIES = 'activation', 'norms', 'additions', 'copies and concatenations'
WEIGHTS = 'on weights (merging, folding, layout)'
OPTIMIZER = 'optimizer'
FUSED = 'generated code'
REST = 'views, allocation and dispatch'

_BY_NAME = {  # what a name contains, in this order
    OPTIMIZER: ('adam', '_foreach'),
    ACTIVATION: ('gelu', 'relu', 'erf'),
    NORMS: ('batch_norm', 'batchnormalization'),
    COPIES: ('cat', 'copy', 'clone', 'contiguous', 'reorder', 'split', 'slice', 'permute', 'transpose'),
    ADDITIONS: ('add', 'sub', 'eltwise', 'sum', 'math'),
}


def eager_operations(
    call: Callable[[], object], *, rounds: int, device: torch.device, trace: Path | None = None
) -> dict[str, float]:
    """Milliseconds per call and kind, of what PyTorch runs: eagerly, compiled, forward or backward.

    ``trace`` is a file for the profile of all calls, as Chrome's trace viewer and Perfetto read it.
    """
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == 'cuda' else [])
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*Profiler clears events')  # of earlier cycles: there is one
        with profile(activities=activities, record_shapes=True) as profiler:
            for _ in range(rounds):
                call()
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    named_device = hasattr(FunctionEventAvg(), 'self_device_time_total')  # torch 2.1 calls it cuda
    on = 'cpu' if device.type != 'cuda' else 'device' if named_device else 'cuda'
    found: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages(group_by_input_shape=True):
        spent_us = getattr(event, f'self_{on}_time_total')
        if spent_us and (kind := _eager_kind(event.key, event.input_shapes)):
            found[kind] += spent_us / 1e3 / rounds
    return dict(found)


def onnxruntime_operations(network: nn.Module, image: Tensor, *, rounds: int, threads: int) -> dict[str, float]:
    """Milliseconds per image and kind of an exported network in ONNX Runtime, by its own profile."""
    import onnxruntime

    from repnext_mm.export import export_model

    with TemporaryDirectory(prefix='profile-', ignore_cleanup_errors=True) as folder:
        path = Path(folder) / 'network.onnx'
        export_model(network, path, format='onnx', shape=tuple(image.shape), dynamic=False)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / 'profile')
        session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
        (entry,) = session.get_inputs()
        inputs = {entry.name: image.numpy()}
        for _ in range(_WARM_UP + rounds):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text())
    runs = [event['ts'] for event in events if event['name'] == 'model_run'][-rounds:]
    found: dict[str, float] = defaultdict(float)
    for event in events:
        if event.get('cat') == 'Node' and event['name'].endswith('_kernel_time') and event['ts'] >= runs[0]:
            found[_onnx_kind(event['args'])] += event['dur'] / 1e3 / rounds
    return dict(found)


def openvino_operations(
    network: nn.Module, image: Tensor, *, rounds: int, threads: int, native: bool = False
) -> dict[str, float]:
    """Milliseconds per image and kind of an exported network in OpenVINO, by its performance counters."""
    import openvino

    from repnext_mm.export import export_model

    options: dict[str, Any] = {'PERFORMANCE_HINT': 'LATENCY', 'PERF_COUNT': True, 'INFERENCE_NUM_THREADS': threads}
    if not native:
        options['INFERENCE_PRECISION_HINT'] = 'f32'
    with TemporaryDirectory(prefix='profile-', ignore_cleanup_errors=True) as folder:
        path = Path(folder) / 'network.xml'
        export_model(network, path, format='openvino', shape=tuple(image.shape), dynamic=False)
        compiled = openvino.Core().compile_model(str(path), 'CPU', options)
        request, array = compiled.create_infer_request(), image.numpy()
        found: dict[str, float] = defaultdict(float)
        for round_ in range(_WARM_UP + rounds):
            request.infer({0: array})
            if round_ >= _WARM_UP:
                for node in request.profiling_info:
                    found[_openvino_kind(node)] += node.real_time.total_seconds() * 1e3 / rounds
    return {kind: spent for kind, spent in found.items() if spent}


_WARM_UP = 5


def _eager_kind(key: str, shapes: Sequence[Sequence[int]]) -> str | None:
    """None for what is no operation, such as a record of the profiler itself."""
    if key.startswith(('graph_', 'cpp_fused', 'triton_')):
        return FUSED
    space, _, name = key.rpartition('::')
    if space not in ('aten', 'mkldnn'):
        return OPTIMIZER if key.startswith('Optimizer') else None
    weight = next((shape for shape in _weights(name, shapes) if len(shape) == 4), None)
    if 'conv' in name and weight is not None:
        return _convolution(weight)
    first = next((shape for shape in shapes if shape), ())
    of_weights = len(first) == 1 or (len(first) == 4 and (first[1] == 1 or first[2] == first[3] == 1))
    if of_weights and not any(part in name for kind in (OPTIMIZER, NORMS) for part in _BY_NAME[kind]):
        return WEIGHTS
    return _named(name)


def _weights(name: str, shapes: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
    return shapes[2:3] if 'backward' in name else shapes[1:2]  # backward: gradient, input, weight


def _convolution(weight: Sequence[int]) -> str:
    _, inputs, *size = weight
    if list(size) == [1, 1]:
        return POINTWISE
    return DEPTHWISE if inputs == 1 else STEM


def _onnx_kind(args: dict[str, Any]) -> str:
    name = args['op_name'].lower()
    shapes = [next(iter(entry.values())) for entry in args.get('input_type_shape', ())]
    if 'conv' in name and len(shapes) > 1 and len(shapes[1]) == 4:
        return _convolution(shapes[1])
    return _named(name)


def _openvino_kind(node: Any) -> str:
    primitive, name = node.exec_type.lower(), node.node_type.lower()
    if name == 'groupconvolution' or '_dw_' in primitive:
        return DEPTHWISE
    if name == 'convolution':
        return POINTWISE if '1x1' in primitive else STEM
    return _named(name)


def _named(name: str) -> str:
    return next((kind for kind, parts in _BY_NAME.items() if any(part in name for part in parts)), REST)
