"""The runtimes of phones: ncnn, MNN, ExecuTorch, LiteRT and Core AI, how each is written and how it runs here.

No converter that is called here installs anything or reports its use. The command-line tools of MNN do both, so the
function beneath them is called, and pnnx is called as the program that it is.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repnext_mm.errors import UserError
from repnext_mm.export.graphs import Signature, quiet, traced
from repnext_mm.export.predict import KEY

TOLERANCES = {'ncnn': 5e-4, 'mnn': 5e-4, 'executorch': 1e-5, 'litert': 1e-5, 'coreai': 1e-5}
"""The largest relative error of a file against the train form.

MNN approximates GELU (2e-4 were seen), and so may ncnn. The others compute in float32: backbones and classifiers were
within 1e-6, and a whole Semantic FPN at 1.0e-6, of which fusing alone is 7e-7.
"""
ONE_SIZE = ('executorch', 'litert', 'coreai')
ONE_IMAGE = ('ncnn',)
TORCH_VERSIONS = {'executorch': ((2, 11), (2, 12)), 'litert': ((2, 4), (2, 15)), 'coreai': ((2, 8), (2, 14))}
"""From the first on, and before the second: what their releases in pyproject.toml are built for."""
INSTALL = {format: f"pip install 'repnext_mm[{format}]'" for format in TOLERANCES}
INSTALL['executorch'] += ', into an environment of its own, since it pins older pytest and scikit-learn'
INSTALL['coreai'] += ', into an environment of its own before Python 3.14, since it wants numpy 2.3 or later'
NCNN_SUFFIXES = ('.ncnn.param', '.ncnn.bin')


def check_mobile(format: str, *, form: Any = None, dynamic: bool = True, batch: int = 1, detects: bool = False) -> None:
    """A runtime of phones takes this model, form and shape; other formats take anything.

    Raises:
        UserError: it does not.
    """
    if format not in TOLERANCES:
        return
    if detects:
        raise UserError(
            f'{format!r} has no operators for whole detectors: export the backbone (part=backbone), or the detector as '
            'ONNX or OpenVINO'
        )
    if form not in (None, 'default'):
        raise UserError(
            f"form {form!r} is slower, or inexact, in the runtimes of phones: {format!r} takes form 'default', omit it"
        )
    if dynamic and format in ONE_SIZE:
        raise UserError(f'{format!r} has one input size: ask for fixed sizes (--static) and give the shape')
    if batch != 1 and format in ONE_IMAGE:
        raise UserError(f'{format!r} takes one image at a time, not {batch}: give a shape 1 x C x H x W')


def check_torch(format: str) -> None:
    """The converter of a format runs beside this torch.

    Raises:
        UserError: it does not.
    """
    if format not in TORCH_VERSIONS:
        return
    first, end = TORCH_VERSIONS[format]
    if not first <= tuple(int(part) for part in torch.__version__.split('.')[:2]) < end:
        raise UserError(
            f'format {format!r} needs torch {".".join(map(str, first))} or later and before '
            f'{".".join(map(str, end))}, and this is {torch.__version__}: make an environment with such a torch '
            '(make env in a clone has 2.11)'
        )


def write_ncnn(
    model: nn.Module,
    path: Path,
    signature: Signature,
) -> None:
    """ncnn by pnnx, float32 weights, a ``.ncnn.bin`` beside the ``.ncnn.param``; blobs ``in0``, ``out0``, ``out1``."""
    (home,) = importlib.util.find_spec('pnnx').submodule_search_locations  # type: ignore[union-attr, misc]
    example = signature.example
    other = (*example.shape[:2], *(size + 32 for size in example.shape[2:]))  # what differs between both is dynamic
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / 'network.pt'
        torch.jit.save(traced(model, example), str(source))
        sizes = {'inputshape': example.shape} | ({'inputshape2': other} if signature.dynamic else {})
        shapes = [f'{name}=[{",".join(map(str, size))}]' for name, size in sizes.items()]
        program = Path(home) / ('pnnx.exe' if os.name == 'nt' else 'pnnx')
        _call([str(program), source.name, *shapes, 'fp16=0', 'device=cpu'], cwd=folder)
        for suffix, target in zip(NCNN_SUFFIXES, _ncnn_files(path), strict=True):
            source.with_suffix(suffix).replace(target)


def onnx_to_mnn(source: Path, path: Path) -> None:
    """MNN of an ONNX file."""
    arguments = ['', '-f', 'ONNX', '--modelFile', str(source), '--MNNModel', str(path), '--bizCode', 'repnext_mm']
    call = 'import json, sys, _tools; _tools.mnnconvert(json.loads(sys.argv[1]))'  # it prints from C++, so apart
    said = _call([sys.executable, '-c', call, json.dumps(arguments)])
    if not path.is_file():
        raise RuntimeError(f'the converter of MNN wrote nothing: {said[-200:]}')


def write_executorch(
    model: nn.Module,
    path: Path,
    signature: Signature,
) -> None:
    """ExecuTorch for XNNPACK, of one input size; its outputs have no names."""
    with quiet(), torch.no_grad():
        from executorch import data
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = torch.export.export(model, (signature.example,), strict=False)
        # it looks for its own flatc on the PATH, where it is only while its environment is active
        with _environment('FLATC_EXECUTABLE', str(Path(next(iter(data.__path__))) / 'bin' / 'flatc')):
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            path.write_bytes(lowered.to_executorch().buffer)


def write_litert(
    model: nn.Module,
    path: Path,
    signature: Signature,
) -> None:
    """LiteRT (formerly TensorFlow Lite), of one input size, ``(N, C, H, W)`` like ours."""
    with quiet(), torch.no_grad(), redirect_stdout(sys.stderr):
        import litert_torch

        litert_torch.convert(model, (signature.example,)).export(str(path))


def write_coreai(
    model: nn.Module,
    path: Path,
    signature: Signature,
) -> None:
    """Core AI, Core ML's successor (iOS 27, macOS 27), of one input size: a folder, with outputs by name."""
    with quiet(), torch.no_grad(), redirect_stdout(sys.stderr):
        import coreai_torch
        from coreai.authoring.asset import AIModelAssetMetadata

        program = torch.export.export(model, (signature.example,), strict=False)
        converter = coreai_torch.TorchConverter().add_exported_program(
            program.run_decompositions(coreai_torch.get_decomp_table()),
            input_names=['input'],
            output_names=list(signature.output_names),
        )
        about = AIModelAssetMetadata()
        about.set_custom(KEY, json.dumps(signature.about))
        converter.to_coreai().save_asset(path, about)


Run = Callable[[Tensor], tuple[Tensor, ...]]


def open_ncnn(path: str, threads: int | None, precision: str) -> Run:
    """ncnn, one image at a time; ``precision`` other than float32 allows half precision."""
    import ncnn
    import numpy as np

    network = ncnn.Net()
    if precision == 'float32':
        for option in ('fp16_packed', 'fp16_storage', 'fp16_arithmetic', 'bf16_storage'):
            setattr(network.opt, f'use_{option}', False)
    if threads is not None:
        network.opt.num_threads = threads
    param, weights = _ncnn_files(Path(path))
    if network.load_param(str(param)) or network.load_model(str(weights)):
        raise RuntimeError(f'ncnn does not have every layer of {param.name}')
    names = [f'out{index}' for index in range(len(network.output_names()))]

    def run(image: Tensor) -> tuple[Tensor, ...]:
        if len(image) != 1:
            raise UserError(f'ncnn takes one image at a time, not {len(image)}: call it once for each')
        extractor = network.create_extractor()
        extractor.input('in0', ncnn.Mat(_array(image[0])).clone())
        found = [extractor.extract(name) for name in names]
        if any(status for status, _ in found):
            raise RuntimeError(f'ncnn does not compute {param.name} at {tuple(image.shape)}')
        return tuple(torch.from_numpy(np.array(output))[None] for _, output in found)

    return run


def open_mnn(path: str, threads: int | None, precision: str) -> Run:
    """MNN; ``precision`` other than float32 allows half precision."""
    import MNN.expr
    import MNN.nn

    options = {'backend': 'CPU', 'precision': 'high' if precision == 'float32' else 'normal'}
    runtime = MNN.nn.create_runtime_manager((options | ({} if threads is None else {'numThread': threads}),))
    network = MNN.nn.load_module_from_file(path, [], [], runtime_manager=runtime)
    layout = MNN.expr.NCHW

    def run(image: Tensor) -> tuple[Tensor, ...]:
        outputs = network.forward([MNN.expr.const(_array(image), list(image.shape), layout)])
        return tuple(torch.from_numpy(MNN.expr.convert(output, layout).read().copy()) for output in outputs)

    return run


def open_executorch(path: str, threads: int | None, precision: str) -> Run:
    """ExecuTorch; ``threads`` are those of all its files in this process."""
    with quiet():
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

    if threads is not None:
        portable_lib._unsafe_reset_threadpool(threads)
    method = Runtime.get().load_program(path).load_method('forward')

    def run(image: Tensor) -> tuple[Tensor, ...]:
        return tuple(output.clone() for output in method.execute((image.contiguous(),)))  # they are its own memory

    return run


def open_litert(path: str, threads: int | None, precision: str) -> Run:
    """LiteRT with XNNPACK."""
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(path, num_threads=threads)
    network.allocate_tensors()
    (entry,) = network.get_input_details()
    outputs = [output['index'] for output in network.get_output_details()]

    def run(image: Tensor) -> tuple[Tensor, ...]:
        network.set_tensor(entry['index'], _array(image))
        network.invoke()
        return tuple(torch.from_numpy(network.get_tensor(index)) for index in outputs)

    return run


def open_coreai(path: str, threads: int | None, precision: str) -> Run:
    """Core AI's runtime, outside of Apple's systems its reference for the CPU, which chooses its threads itself."""
    import asyncio

    from coreai.authoring import AIModelAsset
    from coreai.runtime import NDArray

    async def opened() -> Any:
        async with AIModelAsset.load(Path(path)).executable() as model:
            (name,) = model.function_names
            return model.load_function(name)

    loop = asyncio.new_event_loop()
    function = loop.run_until_complete(opened())
    names = function.desc.output_names

    def run(image: Tensor) -> tuple[Tensor, ...]:
        outputs = loop.run_until_complete(function({'input': NDArray(_array(image))}))
        return tuple(torch.from_numpy(outputs[name].numpy().copy()) for name in names)

    return run


def _ncnn_files(path: Path) -> tuple[Path, Path]:
    stem = path.name[: -len(NCNN_SUFFIXES[0])]
    return path, path.with_name(stem + NCNN_SUFFIXES[1])


def _array(image: Tensor) -> Any:
    return image.detach().cpu().contiguous().numpy()


def _call(command: Sequence[str], *, cwd: str | None = None) -> str:
    """What a program said; a failing one raises the last line of it."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors='replace')
    said = (done.stdout + done.stderr).strip()
    if done.returncode:
        raise RuntimeError(f'{Path(command[0]).name} ended with {done.returncode}: {said.splitlines()[-1:]}')
    return said


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """A variable of the environment, unless it is set already."""
    before = os.environ.get(name)
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
