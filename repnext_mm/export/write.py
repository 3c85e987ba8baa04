"""Exporting a model to a file that is there only when it computes what the model does."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from repnext_mm.export.graphs import Normalised
from repnext_mm.export.parity import parity, probes
from repnext_mm.export.runtimes import RUNTIMES, Run, open_exported
from repnext_mm.export.suffix import SUFFIXES, check_format
from repnext_mm.export.writers import MIN_SIZE, OPSETS, WRITERS, traced
from repnext_mm.models.repnext import RepDWConv
from repnext_mm.reparam.verify import all_within

TOLERANCE = 1e-4
HALF_TOLERANCE = 5e-3  # float16 rounds each weight by up to 5e-4 of it; seen are 5e-4 of the largest output
HALVES = ('onnx', 'openvino')


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written, and how far its outputs are from the model's."""

    path: Path
    format: str
    size_bytes: int  # of all its files
    errors: dict[str, float]  # relative, per output, the worst over `shapes`
    shapes: tuple[tuple[int, ...], ...]  # of the inputs that were compared
    checked_in: str  # the runtime
    opset: int | None  # of ONNX
    replaced: bool  # an earlier file of this name


def export_model(
    model: nn.Module,
    path: str | Path,
    *,
    format: str,
    shape: Sequence[int],
    dynamic: bool = True,
    reference: nn.Module | None = None,
    output_names: Sequence[str] | None = None,
    tolerance: float | None = None,
    opset: int | None = None,
    half: bool = False,
) -> ExportReport:
    """Write a model, run the file in its own runtime, and publish it only when its outputs are the model's.

    Core ML runs on macOS only: there, the trace that is converted is compared.

    Args:
        model: from one image tensor to tensors; RepNeXt fused, float32, on the CPU, norms and dropout in eval mode.
            Never changed.
        path: ends like the format's files do. OpenVINO writes a ``.bin`` beside it.
        format: ``'onnx'``, ``'torchscript'``, ``'openvino'`` or ``'coreml'``.
        shape: ``(N, C, H, W)`` of the input.
        dynamic: let batch, height and width be others later. Compared at another batch and an odd size too.
        reference: what to compare with, such as the model before fusing; ``model`` by default.
        output_names: one per output; ``output_0``, ... by default.
        tolerance: the largest relative error accepted; by default 1e-4, and 5e-3 with ``half``.
        opset: of ONNX; by default 20 with torch 2.9 or newer, else 17. Gelu is written as Erf before 20.
        half: store the weights of ONNX or OpenVINO in float16: a file of half the size. They are cast back when it is
            opened, and computed with in what the runtime chooses.

    Raises:
        FileNotFoundError: there is no such folder.
        RuntimeError: the model cannot be run or written, or the file computes something else; nothing is left behind.
        ValueError: an argument makes no export.
    """
    path = Path(path)
    check_format(format)
    check_options(format, opset=opset, half=half)
    _check(model, path, format, shape)
    tolerance = (HALF_TOLERANCE if half else TOLERANCE) if tolerance is None else tolerance
    chosen = {key: value for key, value in (('opset', opset), ('half', half or None)) if value is not None}
    pixels = format == 'coreml' and isinstance(model, Normalised)
    if pixels and shape[0] != 1:
        raise ValueError(f'Core ML takes one image at a time, not {shape[0]}: give a shape 1 x C x H x W')
    reference = model if reference is None else reference
    inputs = probes(model, shape, dynamic=dynamic, batch=not pixels)
    # what is 1 in the example may stay 1 in the graph
    example = inputs[0].repeat(2, 1, 1, 1) if dynamic and shape[0] == 1 and not pixels else inputs[0]
    count = _count_outputs(reference, inputs[-1])
    names = list(output_names or (f'output_{index}' for index in range(count)))
    if len(names) != count:
        raise ValueError(f'{len(names)} output names for {count} outputs: give one each')
    with tempfile.TemporaryDirectory(prefix='.export-', dir=path.parent) as folder:
        draft = Path(folder) / path.name
        try:
            WRITERS[format](model, draft, example=example, output_names=names, dynamic=dynamic, **chosen)
        except Exception as error:  # converters raise everything
            raise RuntimeError(
                f'{type(model).__name__} cannot be written as {format} with {_sizes(dynamic)} ({_first_line(error)}): '
                + ('fuse it first (repnext_mm.reparam.fuse)' if _in_train_form(model) else _way_out(dynamic))
            ) from error
        run, checked_in = _runtime(model, draft, format, example, dynamic)
        errors = _errors(run, reference, inputs, format, dynamic)
        if not all_within(errors, tolerance):
            listed = ', '.join(f'{name} {error:.1e}' for name, error in zip(names, errors, strict=True))
            raise RuntimeError(
                f'{path.name} was not written: in {checked_in} its outputs differ from those of the model by {listed} '
                f'(relative), more than {tolerance:.1e}: look for NaN in the weights, or '
                f'{_way_out(dynamic)}'
            )
        del run  # a runtime may hold its file open
        written = _opset(draft) if format == 'onnx' else None
        if opset not in (None, written):
            raise RuntimeError(f'{path.name} was not written: asked for opset {opset}, torch wrote {written}')
        size = sum(file.stat().st_size for file in Path(folder).rglob('*') if file.is_file())
        replaced = path.exists()
        _publish(draft, path)
    return ExportReport(
        path=path,
        format=format,
        size_bytes=size,
        errors=dict(zip(names, errors, strict=True)),
        shapes=tuple(tuple(image.shape) for image in inputs),
        checked_in=checked_in,
        opset=written,
        replaced=replaced,
    )


def check_options(format: str, *, opset: int | None = None, half: bool = False) -> None:
    """The format has an opset, or half precision, where one is asked for.

    Raises:
        ValueError: it does not, or torch does not write this opset.
    """
    if opset is not None and format != 'onnx':
        raise ValueError(f'opset {opset} is a version of ONNX, and the format is {format!r}: omit it')
    if opset is not None and opset not in OPSETS:
        raise ValueError(
            f'opset {opset} is not written here: torch {torch.__version__} and RepNeXt give {OPSETS[0]} to '
            f'{OPSETS[-1]}, choose one of these'
        )
    if half and format not in HALVES:
        reason = 'is in half precision anyway' if format == 'coreml' else 'keeps the weights as they are'
        raise ValueError(f'half precision is for {" and ".join(HALVES)}, and {format!r} {reason}: omit it')


def _check(model: nn.Module, path: Path, format: str, shape: Sequence[int]) -> None:
    if path.suffix not in SUFFIXES[format]:
        raise ValueError(f"'{path.name}' is no name for format {format!r}: let it end with {SUFFIXES[format][0]}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f'no folder {path.parent} to write {path.name} to: make it first')
    if path.is_dir() != (format == 'coreml') and path.exists():
        raise ValueError(f"'{path}' is {'a folder' if path.is_dir() else 'a file'} already: give another name")
    if len(shape) != 4 or min(shape) < 1 or min(shape[2:]) < MIN_SIZE:
        raise ValueError(f'shape {tuple(shape)} is no image: give N, C, H, W with H and W at least {MIN_SIZE}')
    # the mode of a container means nothing, and a fused one is new
    if any(module.training for module in model.modules() if isinstance(module, _NormBase | _DropoutNd)):
        raise ValueError(f'{type(model).__name__} is in training mode: call model.eval() first')
    kinds = {f'{parameter.dtype} on {parameter.device}' for parameter in model.parameters()} - {'torch.float32 on cpu'}
    if kinds:
        raise ValueError(
            f'{type(model).__name__} has parameters in {", ".join(sorted(kinds))}: export model.cpu().float(), with '
            'half=True for float16 weights in the file'
        )


def _runtime(model: nn.Module, draft: Path, format: str, example: torch.Tensor, dynamic: bool) -> tuple[Run, str]:
    if format in RUNTIMES:
        try:
            return open_exported(draft, format=format), RUNTIME_NAMES[format]
        except Exception as error:  # runtimes raise their own
            raise RuntimeError(
                f'{RUNTIME_NAMES[format]} does not open the {format} file ({_first_line(error)}): {_way_out(dynamic)}'
            ) from error
    trace = traced(model, example)
    return (lambda image: trace(image)), 'the trace it was converted from'


def _errors(
    run: Run, reference: nn.Module, inputs: Sequence[torch.Tensor], format: str, dynamic: bool
) -> tuple[float, ...]:
    try:
        return parity(run, reference, inputs)
    except Exception as error:  # runtimes raise their own
        raise RuntimeError(
            f'the {format} file cannot be compared with the model at {_sizes(dynamic)} ({_first_line(error)}): '
            f'{_way_out(dynamic)}'
        ) from error


@torch.no_grad()
def _count_outputs(reference: nn.Module, image: torch.Tensor) -> int:
    outputs = reference(image)  # also lets the model itself say what it thinks of the shape
    return 1 if isinstance(outputs, torch.Tensor) else len(outputs)


def _publish(draft: Path, path: Path) -> None:
    """Put the files in their places; the one that is named comes last, so that it finds the others."""
    for file in sorted(draft.parent.iterdir(), key=lambda file: file == draft):
        target = path.with_name(file.name)
        if target.is_dir():
            shutil.rmtree(target)
        file.replace(target)


def _opset(path: Path) -> int:
    import onnx

    return next(int(entry.version) for entry in onnx.load(str(path)).opset_import if not entry.domain)


def _sizes(dynamic: bool) -> str:
    return 'dynamic sizes' if dynamic else 'fixed sizes'


def _way_out(dynamic: bool) -> str:
    return 'try fixed sizes or another format' if dynamic else 'try another format'


def _in_train_form(model: nn.Module) -> bool:
    return any(isinstance(module, RepDWConv) for module in model.modules())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0][:300]}' if lines else type(error).__name__


RUNTIME_NAMES = {'onnx': 'ONNX Runtime', 'torchscript': 'TorchScript', 'openvino': 'OpenVINO'}
