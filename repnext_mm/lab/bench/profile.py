"""Where time goes, by operation and by module, and the least that arithmetic and memory of this machine need."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from repnext_mm.errors import UserError
from repnext_mm.lab.bench.complexity import count_macs
from repnext_mm.lab.bench.jobs import Shape
from repnext_mm.lab.bench.networks import build_train_form, in_form, resolved, variants
from repnext_mm.lab.bench.runtimes import DTYPES, MEMORY_FORMATS, NATIVE, prepare, why_not, write_exported
from repnext_mm.lab.bench.training import (
    BRANCHES,
    EVAL_NORMS,
    MERGED_ONCE,
    TRAIN,
    autocast_to,
    merged_once,
    step_of,
    ways_to_train,
)
from repnext_mm.lab.table import markdown_table
from repnext_mm.timing import Latency, measure_latency

PROFILED = ('eager', 'compile', 'onnxruntime', 'openvino')
"""Runtimes that tell where their time goes."""
PARTS = ('stem', 'downsample', 'token_mixer', 'norm', 'channel_mixer')
"""Modules of RepNeXt whose time is told apart, stage by stage; the outermost counts."""
PASSES = 3  # of a training step: forward, gradient of the inputs, gradient of the weights: the same products each

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

MATRICES = ((1536, 1536, 1536), (512, 256, 1024), (256, 512, 1024), (128, 64, 4096))
"""Sizes (M, K, N) to find the matrix rate with: the best counts."""
COPY_MIB = 256  # far beyond any cache
_WARM_UP = 5  # runs of an exported network that are not counted


@dataclass(frozen=True, kw_only=True)
class Spots:
    """One network on one image, or one way to train it."""

    latency: Latency
    by_kind_ms: dict[str, float]  # per call, as profiled, largest first; what is left of the latency is overhead
    gmacs: float  # of the forward pass
    matrix_gflops: float  # measured rate of this machine, with these threads
    bandwidth_gbs: float  # measured, read and written bytes of a large copy
    arithmetic_ms: float  # all multiply-accumulates at the matrix rate
    memory_ms: float | None = None  # inputs, outputs and weights of every convolution, once each, at that bandwidth

    @property
    def floor_ms(self) -> float:
        """No implementation of these convolutions can be faster here, unless it keeps outputs in caches."""
        return max(self.arithmetic_ms, self.memory_ms or 0.0)


def profile_training(
    arch: str,
    *,
    shape: Shape,
    memory_format: str,
    norm_eval: bool,
    device: str,
    rounds: int,
    dtype: str = 'float32',
    trace: str | None = None,
) -> tuple[str, str]:
    """What was profiled in a line, and the table of a training step's operations; see ``find_step_spots``.

    Args:
        trace: ``FILE.json``, for a trace of each way to train, ``FILE.WAY.json``.

    Raises:
        UserError: no autocast has that dtype.
    """
    spots = find_step_spots(
        arch,
        shape=shape,
        memory_format=memory_format,
        norm_eval=norm_eval,
        device=device,
        rounds=rounds,
        dtype=dtype,
        trace=None if trace is None else partial(_trace_file, trace),
    )
    norms = 'eval' if norm_eval else 'train'
    return f'training step, norms in {norms} mode; {machine_line(spots)}', operations_table(spots)


def profile_inference(
    arch: str,
    forms: Sequence[str],
    *,
    shape: Shape,
    runtime: str,
    by_module: bool,
    dtype: str,
    memory_format: str,
    device: str,
    threads: int,
    rounds: int,
    trace: str | None = None,
) -> tuple[str, str]:
    """What was profiled in a line, and the table of the forms' operations, or modules; see ``find_hot_spots``.

    Args:
        trace: ``FILE.json``, for a trace of each form, ``FILE.FORM.json``.

    Raises:
        UserError: an unknown arch or form; the runtime cannot be profiled here, has no modules, or writes no trace.
    """
    variants([arch], forms)  # knows the names
    reason = why_not(runtime, device=device, dtype=dtype, memory_format=memory_format)
    if reason:
        raise UserError(f'--runtime {runtime} cannot be profiled here: {reason}')
    if by_module and runtime != 'eager':
        raise UserError(f'--by module: {runtime} has no modules, profile --runtime eager')
    if trace is not None and (by_module or runtime not in ('eager', 'compile')):
        raise UserError('--trace: PyTorch writes it, profile --runtime eager or compile --by operation')
    image = torch.randn(shape).to(device, DTYPES[dtype]).contiguous(memory_format=MEMORY_FORMATS[memory_format])
    train_form = build_train_form(arch)
    networks = {form: in_form(train_form, resolved(train_form, form, image=image), image=image) for form in forms}
    if by_module:
        times = {form: time_by_module(network, image, rounds=rounds) for form, network in networks.items()}
        return 'by module', modules_table(times)
    spots = {
        form: find_hot_spots(
            network,
            image,
            rounds=rounds,
            runtime=runtime,
            threads=threads,
            dtype=dtype,
            trace=None if trace is None else _trace_file(trace, form),
        )
        for form, network in networks.items()
    }
    return machine_line(spots), operations_table(spots)


@torch.no_grad()  # not inference_mode: there torch 2.1 counts no operations
def find_hot_spots(
    network: nn.Module,
    image: Tensor,
    *,
    rounds: int = 20,
    runtime: str = 'eager',
    threads: int | None = None,
    dtype: str = 'float32',
    trace: Path | None = None,
) -> Spots:
    """Time a network, profile it, and measure what the machine could do.

    Args:
        network: in eval mode, on the device and in the dtype and memory format of ``image``.
        image: ``(N, 3, H, W)``.
        rounds: timed calls, and profiled ones.
        runtime: of ``PROFILED``; its own profiler is read, and timing runs without it.
        threads: of an exported runtime; PyTorch's are set for the whole process.
        dtype: what only an exported file can be told, see ``prepare``.
        trace: see ``eager_operations``; of eager or compiled PyTorch.

    Raises:
        UserError: the runtime has no profile here.
    """
    if runtime not in PROFILED:
        raise UserError(f'runtime {runtime!r} is not profiled: choose one of {", ".join(PROFILED)}')
    device, threads = image.device, threads or torch.get_num_threads()
    with _kernels_named(runtime):
        run = prepare(network, image, runtime=runtime, threads=threads, dtype=dtype)
        latency = measure_latency({'network': run}, rounds=rounds, device=device)['network']
        if runtime == 'onnxruntime':
            kinds = onnxruntime_operations(network, image, rounds=rounds, threads=threads, dtype=dtype)
        elif runtime == 'openvino':
            kinds = openvino_operations(network, image, rounds=rounds, threads=threads, dtype=dtype)
        else:
            kinds = eager_operations(run, rounds=rounds, device=device, trace=trace)
    gmacs = count_macs(lambda: network(image)) / 1e9
    gflops, gbs = matrix_gflops(image), bandwidth_gbs(image)
    return Spots(
        latency=latency,
        by_kind_ms=_largest_first(kinds),
        gmacs=gmacs,
        matrix_gflops=gflops,
        bandwidth_gbs=gbs,
        arithmetic_ms=2 * gmacs / gflops * 1e3,
        memory_ms=_convolution_bytes(network, image) / gbs / 1e6,
    )


@torch.no_grad()
def time_by_module(network: nn.Module, image: Tensor, *, rounds: int = 20) -> dict[str, float]:
    """Milliseconds per call of RepNeXt's parts in eager PyTorch, in the order in which they run.

    Keys are ``stem`` and ``stage S: PART``, a part's calls summed over the blocks of its stage; ``shortcuts and the
    rest`` is what the whole call takes beside them, the clock's own cost included.
    """
    spent: dict[str, float] = defaultdict(float)
    started: dict[int, float] = {}

    def now() -> float:
        if image.is_cuda:
            torch.cuda.synchronize(image.device)
        return time.perf_counter() * 1e3

    def start(module: nn.Module, inputs: Any) -> None:
        started[id(module)] = now()

    def stopped(label: str) -> Callable[..., None]:
        def stop(module: nn.Module, inputs: Any, output: Any) -> None:
            spent[label] += now() - started.pop(id(module))

        return stop

    for _ in range(3):
        network(image)
    handles = []
    for label, module in _parts(network):
        handles += [module.register_forward_pre_hook(start), module.register_forward_hook(stopped(label))]
    began = now()
    try:
        for _ in range(rounds):
            network(image)
    finally:
        for handle in handles:
            handle.remove()
    whole = now() - began
    spent['shortcuts and the rest'] = whole - sum(spent.values())
    return {label: total / rounds for label, total in spent.items()}


def find_step_spots(
    arch: str | Mapping[str, Any],
    *,
    shape: tuple[int, int, int, int],
    memory_format: str = 'contiguous',
    norm_eval: bool = False,
    device: torch.device | str = 'cpu',
    rounds: int = 5,
    dtype: str = 'float32',
    trace: Callable[[str], Path] | None = None,
) -> dict[str, Spots]:
    """Time, in turn, and profile train form, branches and ``merged once``, which has nothing to merge.

    The difference between the first and the last is what merging costs: no faster merging gains more.

    Args:
        arch: of ``RepNeXt``.
        shape: ``(N, 3, H, W)``.
        memory_format: of images and weights.
        norm_eval: norms in eval mode, folded on the fly or, in ``merged once``, for good.
        device: where to train.
        rounds: timed steps of each way, and profiled ones.
        dtype: of autocast; the matrix rate is that of this dtype, copies are of float32.
        trace: the file of each way, by name; see ``eager_operations``.

    Raises:
        UserError: no autocast has that dtype.
    """
    autocast = autocast_to(dtype, device)
    torch.manual_seed(0)
    images = torch.randn(shape).to(device, memory_format=MEMORY_FORMATS[memory_format])
    suffix = EVAL_NORMS if norm_eval else ''
    found = ways_to_train(arch, like=images)
    ways = {name: found[name + suffix] for name in (TRAIN, BRANCHES)}
    online = ways[TRAIN].run
    assert isinstance(online, nn.Module)
    ways[MERGED_ONCE] = merged_once(online, norm_eval=norm_eval)
    calls = {name: step_of(way, images, autocast) for name, way in ways.items()}
    latency = measure_latency(calls, rounds=rounds, warmup_rounds=1, device=images.device)
    gflops, gbs = matrix_gflops(images.to(DTYPES[dtype])), bandwidth_gbs(images)
    spots = {}
    for name, way in ways.items():
        file = None if trace is None else trace(name)
        kinds = eager_operations(calls[name], rounds=rounds, device=images.device, trace=file)
        gmacs = count_macs(lambda way=way: way.run(images)) / 1e9  # type: ignore[misc]
        spots[name] = Spots(
            latency=latency[name],
            by_kind_ms=_largest_first(kinds),
            gmacs=gmacs,
            matrix_gflops=gflops,
            bandwidth_gbs=gbs,
            arithmetic_ms=PASSES * 2 * gmacs / gflops * 1e3,
        )
    return spots


def operations_table(found: Mapping[str, Spots]) -> str:
    """Where the time goes, then the latency without the profiler, then what the machine allows."""
    spots = list(found.values())
    rows = _rows({name: column.by_kind_ms for name, column in found.items()})
    rows += [
        ['**sum of the above, profiled**', *(f'{sum(s.by_kind_ms.values()):.1f}' for s in spots)],
        ['**latency, median**', *(f'{s.latency.median_ms:.1f}' for s in spots)],
        ['**p10 to p90**', *(f'{s.latency.p10_ms:.1f} to {s.latency.p90_ms:.1f}' for s in spots)],
        ['**arithmetic at the matrix rate**', *(f'{s.arithmetic_ms:.1f}' for s in spots)],
    ]
    memory = [f'{s.memory_ms:.1f}' for s in spots if s.memory_ms is not None]
    if memory:
        rows.append(['**convolutions at memory bandwidth**', *memory])
    rows.append(['**profiled, were all but 1x1 convolutions free**', *(f'{_bound(s):.2f} x' for s in spots)])
    return markdown_table(['', *found], rows)


def modules_table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Where the time goes by module, in the order in which they run; milliseconds by network, then module."""
    whole = ['**whole call**', *(f'{sum(column.values()):.1f}' for column in found.values())]
    return markdown_table(['', *found], [*_rows(found), whole])


def machine_line(found: Mapping[str, Spots]) -> str:
    """What the machine does at best, as measured beside the profile."""
    best = max(found.values(), key=lambda spots: spots.matrix_gflops)
    return f'{best.matrix_gflops:.0f} GFLOP/s in matrix products, {best.bandwidth_gbs:.0f} GB/s in copies'


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
        if spent_us and (kind := eager_kind(event.key, event.input_shapes)):
            found[kind] += spent_us / 1e3 / rounds
    return dict(found)


def onnxruntime_operations(
    network: nn.Module, image: Tensor, *, rounds: int, threads: int, dtype: str = 'float32'
) -> dict[str, float]:
    """Milliseconds per image and kind of an exported network in ONNX Runtime, by its own profile."""
    import onnxruntime

    with TemporaryDirectory(prefix='profile-', ignore_cleanup_errors=True) as folder:
        path = write_exported(network, image, folder, format='onnx', dtype=dtype)
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
            found[onnx_kind(event['args'])] += event['dur'] / 1e3 / rounds
    return dict(found)


def openvino_operations(
    network: nn.Module, image: Tensor, *, rounds: int, threads: int, dtype: str = 'float32'
) -> dict[str, float]:
    """Milliseconds per image and kind of an exported network in OpenVINO, by its performance counters."""
    import openvino

    options: dict[str, Any] = {'PERFORMANCE_HINT': 'LATENCY', 'PERF_COUNT': True, 'INFERENCE_NUM_THREADS': threads}
    if dtype != NATIVE:
        options['INFERENCE_PRECISION_HINT'] = 'f32'
    with TemporaryDirectory(prefix='profile-', ignore_cleanup_errors=True) as folder:
        path = write_exported(network, image, folder, format='openvino', dtype=dtype)
        compiled = openvino.Core().compile_model(str(path), 'CPU', options)
        request, array = compiled.create_infer_request(), image.numpy()
        found: dict[str, float] = defaultdict(float)
        for round_ in range(_WARM_UP + rounds):
            request.infer({0: array})
            if round_ >= _WARM_UP:
                for node in request.profiling_info:
                    found[openvino_kind(node)] += node.real_time.total_seconds() * 1e3 / rounds
    return {kind: spent for kind, spent in found.items() if spent}


def matrix_gflops(like: Tensor) -> float:
    """Measured rate of matrix products, in the dtype and on the device of a tensor, with the threads that are set."""
    rates = []
    for m, k, n in MATRICES:
        a, b = like.new_ones(m, k), like.new_ones(k, n)
        rates.append(2 * m * k * n / _seconds(lambda a=a, b=b: a @ b, like.device) / 1e9)  # type: ignore[misc]
    return max(rates)


def bandwidth_gbs(like: Tensor) -> float:
    """Measured bytes per second of a large copy, read and written ones, in units of 1e9."""
    source = like.new_empty(COPY_MIB * 2**20 // like.element_size())
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return moved / _seconds(lambda: target.copy_(source), like.device) / 1e9


def _trace_file(trace: str, name: str) -> Path:
    path = Path(trace)
    return path.with_name(f'{path.stem}.{name.replace(" ", "_")}.json')


def _parts(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in network.named_modules():
        *holders, last = name.split('.')
        if last in PARTS and not set(holders) & set(PARTS) and not isinstance(module, nn.Identity):
            stage = re.search(r'stages\.(\d+)\.', name)
            yield f'stage {int(stage[1]) + 1}: {last}' if stage else last, module


@contextmanager
def _kernels_named(runtime: str) -> Iterator[None]:
    """Let the compiler write its kernels' names into the profile, on a CPU too."""
    if runtime != 'compile':
        yield
        return
    from torch._inductor import config

    with config.patch({'cpp.enable_kernel_profile': True}):
        yield


def _convolution_bytes(network: nn.Module, image: Tensor) -> int:
    """Bytes of every convolution's input, output and weights."""
    moved = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal moved
        tensors = [inputs[0], output, *module.parameters()]
        moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    handles = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d)]
    network(image)
    for handle in handles:
        handle.remove()
    return moved


def _bound(spots: Spots) -> float:
    """How many times faster the profiled operations would be if only 1x1 convolutions took time."""
    pointwise = spots.by_kind_ms.get(POINTWISE, 0.0)
    return sum(spots.by_kind_ms.values()) / pointwise if pointwise else float('inf')


def _rows(found: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    kinds = dict.fromkeys(kind for column in found.values() for kind in column)
    return [[kind, *(f'{column.get(kind, 0):.2f}' for column in found.values())] for kind in kinds]


def _largest_first(kinds: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))


def eager_kind(key: str, shapes: Sequence[Sequence[int]]) -> str | None:
    """The kind of an event of PyTorch's profiler; None for what is not an operation, but the profiler's own record."""
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


def onnx_kind(args: dict[str, Any]) -> str:
    """The kind of a node by the arguments of its event in ONNX Runtime's profile."""
    name = args['op_name'].lower()
    shapes = [next(iter(entry.values())) for entry in args.get('input_type_shape', ())]
    if 'conv' in name and len(shapes) > 1 and len(shapes[1]) == 4:
        return _convolution(shapes[1])
    return _named(name)


def openvino_kind(node: Any) -> str:
    """The kind of a node by its entry in OpenVINO's performance counters."""
    primitive, name = node.exec_type.lower(), node.node_type.lower()
    if name == 'groupconvolution' or '_dw_' in primitive:
        return DEPTHWISE
    if name == 'convolution':
        return POINTWISE if '1x1' in primitive else STEM
    return _named(name)


def _named(name: str) -> str:
    return next((kind for kind, parts in _BY_NAME.items() if any(part in name for part in parts)), REST)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(12):
        if device.type == 'cuda':
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device.type == 'cuda':
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times[2:])
