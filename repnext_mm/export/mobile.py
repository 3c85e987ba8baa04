"""The formats of phones: ncnn, MNN, ExecuTorch, LiteRT and Core AI, what they take and how each is written.

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repnext_mm.errors import UserError
from repnext_mm.export.graphs import Signature, quiet, traced
from repnext_mm.export.openers import KEY, ncnn_weights

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
        source.with_suffix('.ncnn.param').replace(path)
        source.with_suffix('.ncnn.bin').replace(ncnn_weights(path))


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
