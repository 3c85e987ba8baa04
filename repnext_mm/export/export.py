"""From a config, an arch or a module to a file that is there only when it computes what the network does."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from repnext_mm.apis.config import load_config
from repnext_mm.errors import MissingFileError, UserError
from repnext_mm.export.accuracy import Accuracy, calibration_images, compare
from repnext_mm.export.bfloat16 import check_bfloat16, run_in_bfloat16
from repnext_mm.export.detectors import DETECTION_LIMITS
from repnext_mm.export.formats import (
    DETECTOR_OPSETS,
    MIN_SIZE,
    OPSETS,
    RUNTIMES,
    WRITERS,
    Run,
    check_format,
    format_of,
    onnx_to_openvino,
    open_exported,
    save_openvino,
)
from repnext_mm.export.graphs import Distance, Normalized, Part, Signature, load_part, traced
from repnext_mm.export.mobile import ONE_IMAGE, TOLERANCES, check_mobile
from repnext_mm.export.openers import BESIDE, FOLDERS, SUFFIXES, beside
from repnext_mm.export.predict import open_file
from repnext_mm.export.quantize import check_quantizer, quantize_onnx, quantize_openvino, signal_to_noise
from repnext_mm.models.token_mixers import RepDWConv
from repnext_mm.reparam import FusionReport, relative_error
from repnext_mm.reparam.fusible import Form, check_form, forms_of
from repnext_mm.reparam.verify import all_within, worst
from repnext_mm.timing import NOT_FOR_SPEED, Latency, measure_latency

TOLERANCE = 1e-4
BFLOAT16_TOLERANCE = 5e-2  # eight bits round by 4e-3, layer by layer
HALF_TOLERANCE = 5e-3  # float16 rounds each weight by up to 5e-4 of it; seen are 5e-4 of the largest output
HALVES = QUANTIZED = ('onnx', 'openvino')
PIXELS_IN_UINT8 = ('onnx', 'openvino', 'torchscript')
MAX_DROP, INT8_MAX_DROP = 0.001, 0.005  # of a metric from 0 to 1
MIN_SIGNAL_TO_NOISE_DB = 10.0  # of outputs in int8; 16 cost a classifier nothing in top-1


class NotExportedError(RuntimeError, UserError):
    """A network cannot be written in a format, or the file computes something else: nothing was written."""


@dataclass(frozen=True)
class Choice:
    """What was measured, and the winner."""

    form: str
    latencies: dict[str, Latency]  # per form
    refused: dict[str, str]  # forms that could not be exported, and why


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
    accuracy: Accuracy | None = None  # on data, where there are any
    calibrated_with: int = 0  # images, of int8; `errors` are those of its graph in float
    signal_to_noise_db: float | None = None  # of int8 against float, where the outputs are of one shape


@dataclass(frozen=True, kw_only=True)
class ExportedPart:
    """What was fused, chosen and written."""

    export: ExportReport
    fusion: FusionReport
    form: Form
    choice: Choice | None  # what form='auto' measured


def export_part(
    source: str | Path,
    path: str | Path,
    *,
    checkpoint: str | None = None,
    part: str | None = None,
    form: Form | None = None,
    shape: Sequence[int] = (1, 3, 224, 224),
    dynamic: bool = True,
    normalize: bool | None = None,
    uint8: bool = False,
    threads: int | None = None,
    opset: int | None = None,
    half: bool = False,
    int8: bool = False,
    bf16: bool = False,
    quantizer: str | None = None,
    data: str | Path | None = None,
    images: int = 300,
    max_drop: float | None = None,
    trust_pickle: bool = False,
    options: Mapping[str, Any] | None = None,
) -> ExportedPart:
    """Fuse a network and export it; the file is compared with the network as it was trained.

    Args:
        source, checkpoint, part, trust_pickle, options: see ``load_part``.
        path: its end names the format, see ``format_of``.
        form: as in ``repnext_mm.reparam.fuse``, per stage too (``{'stages.0': 'dense'}``), or ``'auto'``: see
            ``choose_form``. By default ``'default'``, and in int8 ``'balanced'`` where the network has it.
        shape, dynamic, opset, half: see ``export_model``.
        normalize: see ``load_part``; by default for whole detectors, for Core ML, which takes images, and ``uint8``.
        uint8: see ``export_model``.
        threads: of the runtime that ``'auto'`` measures in.
        int8: quantize the file (ONNX, OpenVINO), calibrated on ``data``; see ``repnext_mm.export.quantize``.
        bf16: have OpenVINO compute the file in bfloat16, but for the coordinates of boxes; see
            ``repnext_mm.export.bfloat16``.
        quantizer: ``'onnxruntime'``, the default of ``int8``, or ``'nncf'``, for OpenVINO only.
        data: a config, whose test set gives the metric of the model and of the file; for int8, its training set
            calibrates. Or a folder of images to calibrate with, and then no metric is known.
        images: how many, at most, for each.
        max_drop: the largest loss of a metric, from 0 to 1; by default 0.001, and 0.005 with ``int8``.

    Raises:
        UserError: one sentence with the value, the rule and the way out.
    """
    format = format_of(path)
    check_format(format)
    check_options(format, opset=opset, half=half, uint8=uint8)
    if uint8 and normalize is False:
        raise UserError('an input in uint8 is pixels, which the graph has to normalize: omit normalize=False')
    _check_data(format, data, int8=int8, bf16=bf16, half=half, images=images, max_drop=max_drop)
    if quantizer is not None:
        if not int8:
            raise UserError(f'quantizer={quantizer!r} is for int8: give that too, or omit it')
        check_quantizer(quantizer, format)
    check_mobile(format, form=form, dynamic=dynamic)
    if form is not None and form != 'auto':
        check_form(form)
    chosen = load_part(
        source,
        checkpoint=checkpoint,
        part=part,
        normalize=True if normalize is None and (format == 'coreml' or uint8) else normalize,
        trust_pickle=trust_pickle,
        options=options,
    )
    if uint8:
        chosen = replace(chosen, about={**chosen.about, 'dtype': 'uint8'} if chosen.about else {})
    given: dict[str, Any] = dict(format=format, shape=shape, dynamic=dynamic, opset=opset, half=half, uint8=uint8)
    if form is None:
        form = 'balanced' if int8 and 'balanced' in forms_of(chosen.network) else 'default'
    choice = None
    if form == 'auto':
        choice = choose_form(chosen, threads=threads, **given)
        form = choice.form
    judge = None
    if data is not None and Path(data).is_file():
        limit = (INT8_MAX_DROP if int8 else MAX_DROP) if max_drop is None else max_drop
        judge = _judge(chosen, load_config(data, options=options), images=images, max_drop=limit)
    if bf16:
        check_bfloat16(format, whole='task' in chosen.about, detects=chosen.detects, judged=judge is not None)
        given['finish'] = partial(_in_bfloat16, chosen, shape=shape, uint8=uint8, judged=judge is not None)
    if int8 and data is not None:
        if 'steps' not in chosen.about:
            raise UserError(
                'int8 needs images as the network sees them, and the test pipeline of the config has a step that is '
                'unknown here: export it in float'
            )
        given['calibration'] = partial(calibration_images, data, chosen.about, count=images, options=options)
        given.pop('half')
        report, fusion = write_int8(chosen, form, path, judge=judge, quantizer=quantizer or 'onnxruntime', **given)
    else:
        report, fusion = write_part(chosen, form, path, judge=judge, **given)
    return ExportedPart(export=report, fusion=fusion, form=form, choice=choice)


def write_part(part: Part, form: Form, path: str | Path, **options: Any) -> tuple[ExportReport, FusionReport]:
    """Fuse a loaded part and export it, see ``export_model`` for options and errors."""
    graph, fusion = part.fused(form)
    report = export_model(
        graph,
        path,
        reference=part.reference,
        output_names=part.output_names,
        batched=not part.detects,
        distance=part.distance,
        about=part.about,
        **options,
    )
    return report, fusion


def write_int8(
    part: Part,
    form: Form,
    path: str | Path,
    *,
    format: str,
    quantizer: str,
    calibration: Callable[[], Iterable[Any]],
    judge: Callable[[Path], Accuracy] | None = None,
    **options: Any,
) -> tuple[ExportReport, FusionReport]:
    """Fuse a loaded part, export it in float, quantize that file and publish it if its accuracy is accepted.

    Without a metric, the outputs of a network that is not a detector have to keep ``MIN_SIGNAL_TO_NOISE_DB``.

    Args:
        part, form, path, format, options: see ``export_model``.
        quantizer: see ``export_part``.
        calibration: gives inputs of the network.
        judge: gives the accuracy of a file.

    Raises:
        NotExportedError: see ``export_model``; or the file in int8 is too far from that in float.
        UserError: an argument makes no export.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix='.export-', dir=path.parent) as folder:
        source = Path(folder) / 'float.onnx'
        report, fusion = write_part(part, form, source, format='onnx', **options)
        in_float = open_file(source)
        # of what is empty, no range is known
        useful = (image for image in calibration() if all(output.size for output in in_float.run(image)))
        drafts = Path(folder) / 'drafts'
        drafts.mkdir()
        draft = drafts / path.name
        described: dict[str, Any] = dict(output_names=part.output_names, about=part.about)
        if quantizer == 'nncf':
            network, count = quantize_openvino(source, useful)
            save_openvino(network, draft, **described)
        else:
            quantized = draft if format == 'onnx' else Path(folder) / 'int8.onnx'
            count = quantize_onnx(source, quantized, useful)
            if format == 'openvino':
                onnx_to_openvino(quantized, draft, **described)
        noise = None
        if not part.detects:
            in_int8 = open_file(draft)
            pairs = [(in_int8.run(image), in_float.run(image)) for image in itertools.islice(calibration(), 8)]
            noise = signal_to_noise(*(list(itertools.chain(*side)) for side in zip(*pairs, strict=True)))
            if judge is None and not noise >= MIN_SIGNAL_TO_NOISE_DB:
                raise NotExportedError(
                    f'{path.name} was not written: in int8 its outputs have {noise:.1f} dB of signal to noise, less '
                    f'than {MIN_SIGNAL_TO_NOISE_DB}: try another form, or give a config as data, whose metric decides'
                )
        accuracy = None if judge is None else judge(draft)
        size = sum(file.stat().st_size for file in drafts.iterdir())
        replaced = path.exists()
        _publish(draft, path)
    changed: dict[str, Any] = dict(path=path, format=format, size_bytes=size, replaced=replaced, accuracy=accuracy)
    if format != 'onnx':
        changed['opset'] = None
    return replace(report, calibrated_with=count, signal_to_noise_db=noise, **changed), fusion


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
    uint8: bool = False,
    batched: bool = True,
    distance: Distance | None = None,
    about: Mapping[str, Any] | None = None,
    finish: Callable[[Path], object] | None = None,
    judge: Callable[[Path], Accuracy] | None = None,
) -> ExportReport:
    """Write a model, run the file in its own runtime, and publish it only when its outputs are the model's.

    Core ML runs on macOS only: there, the trace that is converted is compared.

    Args:
        model: from one image tensor to tensors; RepNeXt fused, float32, on the CPU, norms and dropout in eval mode.
            Never changed.
        path: ends like the format's files do. OpenVINO writes a ``.bin`` beside it.
        format: a name in ``repnext_mm.export.SUFFIXES``.
        shape: ``(N, C, H, W)`` of the input.
        dynamic: let batch, height and width be others later. Compared at another batch and an odd size too.
        reference: what to compare with, such as the model before fusing; ``model`` by default.
        output_names: one per output; ``output_0``, ... by default.
        tolerance: the largest relative error accepted; by default 1e-4, 5e-3 with ``half``, and for the runtimes of
            phones see ``repnext_mm.export.mobile.TOLERANCES``.
        opset: of ONNX; by default 20 with torch 2.9 or newer, else 17. Gelu is written as Erf before 20.
        half: store the weights of ONNX or OpenVINO in float16: a file of half the size. They are cast back when it is
            opened, and computed with in what the runtime chooses.
        uint8: the input is pixels in uint8 (ONNX, OpenVINO, TorchScript), a quarter of the bytes; ``model`` is
            ``Normalized``.
        batched: False for a graph that takes one image at a time and returns as many rows as it finds objects.
        distance: how far the outputs are from the reference's, one number each; by default the relative error.
        about: written into the file, see ``Part.about``.
        finish: changes the file once it was compared.
        judge: gives the accuracy of the file on data, or raises ``NotExportedError``.

    Raises:
        NotExportedError: the model cannot be run or written, or the file computes something else; nothing is left.
        UserError: an argument makes no export.
    """
    path = Path(path)
    check_format(format)
    check_options(format, opset=opset, half=half, uint8=uint8)
    _check(model, path, format, shape)
    if uint8 and not isinstance(model, Normalized):
        raise UserError('an input in uint8 is pixels, which the graph has to normalize: give a Normalized model')
    check_mobile(format, dynamic=dynamic, batch=shape[0], detects=not batched)
    if tolerance is None:
        tolerance = HALF_TOLERANCE if half else TOLERANCES.get(format, TOLERANCE)
    chosen = {key: value for key, value in (('opset', opset), ('half', half or None)) if value is not None}
    if not batched:
        _check_one_image(model, format, shape, opset)
    pixels = format == 'coreml' and isinstance(model, Normalized)
    if pixels and shape[0] != 1:
        raise UserError(f'Core ML takes one image at a time, not {shape[0]}: give a shape 1 x C x H x W')
    reference = model if reference is None else reference
    any_batch = batched and not pixels and format not in ONE_IMAGE
    inputs = probes(model, shape, dynamic=dynamic, batch=any_batch, uint8=uint8)
    # what is 1 in the example may stay 1 in the graph
    example = inputs[0].repeat(2, 1, 1, 1) if dynamic and shape[0] == 1 and any_batch else inputs[0]
    count = _count_outputs(reference, inputs[-1])
    names = list(output_names or (f'output_{index}' for index in range(count)))
    if len(names) != count:
        raise UserError(f'{len(names)} output names for {count} outputs: give one each')
    about = dict(about or {})
    if about and not dynamic:
        about['size'] = list(shape[2:])
    with tempfile.TemporaryDirectory(prefix='.export-', dir=path.parent) as folder:
        draft = Path(folder) / path.name
        try:
            signature = Signature(example=example, output_names=names, dynamic=dynamic, batched=batched, about=about)
            WRITERS[format](model, draft, signature, **chosen)
        except Exception as error:  # converters raise everything
            raise NotExportedError(
                f'{type(model).__name__} cannot be written as {format} with {_sizes(dynamic)} ({_first_line(error)}): '
                + ('fuse it first (repnext_mm.reparam.fuse)' if _in_train_form(model) else _way_out(dynamic))
            ) from error
        if about and format in BESIDE:
            beside(draft).write_text(json.dumps(about))
        run, checked_in = _runtime(model, draft, format, example, dynamic)
        errors = _errors(run, reference, inputs, format, dynamic, distance)
        limits = [tolerance if distance is None else max(tolerance, DETECTION_LIMITS[name]) for name in names]
        if not all(all_within([error], limit) for error, limit in zip(errors, limits, strict=True)):
            listed = ', '.join(f'{name} {error:.1e}' for name, error in zip(names, errors, strict=True))
            raise NotExportedError(
                f'{path.name} was not written: in {checked_in} its outputs differ from those of the model by {listed} '
                f'(relative), more than {tolerance:.1e}: look for NaN in the weights, or '
                f'{_way_out(dynamic)}'
            )
        del run  # a runtime may hold its file open
        written = _opset(draft) if format == 'onnx' else None
        if opset not in (None, written):
            raise NotExportedError(f'{path.name} was not written: asked for opset {opset}, torch wrote {written}')
        if finish is not None:
            finish(draft)
        accuracy = None if judge is None else judge(draft)
        size = sum(file.stat().st_size for file in Path(folder).rglob('*') if file.is_file())
        replaced = path.exists()
        _publish(draft, path)
        if not about and format in BESIDE:
            beside(path).unlink(missing_ok=True)  # of an earlier file of this name
    return ExportReport(
        path=path,
        format=format,
        size_bytes=size,
        errors=dict(zip(names, errors, strict=True)),
        shapes=tuple(tuple(image.shape) for image in inputs),
        checked_in=checked_in,
        opset=written,
        replaced=replaced,
        accuracy=accuracy,
    )


def choose_form(
    part: Part,
    *,
    format: str,
    shape: Sequence[int],
    dynamic: bool = True,
    threads: int | None = None,
    rounds: int = 30,
    opset: int | None = None,
    half: bool = False,
    uint8: bool = False,
) -> Choice:
    """Export every form that keeps no norms, time them in turns in the format's own runtime, keep the fastest.

    The forms differ by what suits a processor and an input size: choose on the machine that will run the file.

    Raises:
        NotExportedError: no form can be exported.
        UserError: the format has no runtime here.
    """
    check_mobile(format, form='auto', dynamic=dynamic)
    if format not in RUNTIMES:
        raise UserError(
            f"form 'auto' measures in the export's own runtime, and {format!r} has none here: name one of "
            f'{", ".join(forms_of(part.network))}'
        )
    calls, refused = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for form in forms_of(part.network):
            if form in NOT_FOR_SPEED:
                continue
            path = Path(folder) / f'{form}{SUFFIXES[format][0]}'
            given: dict[str, Any] = dict(format=format, shape=shape, dynamic=dynamic)
            given |= dict(opset=opset, half=half, uint8=uint8)
            try:
                write_part(part, form, path, **given)
            except NotExportedError as error:
                refused[form] = str(error)
                continue
            calls[form] = open_exported(path, format=format, threads=threads)
        if not calls:
            raise NotExportedError(next(iter(refused.values())))
        image = probes(part.reference, shape, dynamic=False, uint8=uint8)[0]
        timed = {form: partial(run, image) for form, run in calls.items()}
        latencies = measure_latency(timed, rounds=rounds, warmup_s=0.5)
    return Choice(min(latencies, key=lambda form: latencies[form].median_ms), latencies, refused)


def probes(
    model: nn.Module, shape: Sequence[int], *, dynamic: bool, batch: bool = True, uint8: bool = False
) -> list[Tensor]:
    """Random inputs of a shape and, where sizes are dynamic, of another (odd) size and another batch.

    ``batch=False`` keeps the batch. A ``Normalized`` model gets pixels, in uint8 where they are asked for so.
    """
    shapes = [tuple(shape)]
    if dynamic:
        n, channels, height, width = shape
        shapes.append((n + batch, channels, _other(height, 3), _other(width, 5)))
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, Normalized):
        pixels = [torch.rand(shape, generator=generator) * 255 for shape in shapes]
        return [image.to(torch.uint8) for image in pixels] if uint8 else pixels
    return [torch.randn(shape, generator=generator) for shape in shapes]


@torch.no_grad()
def parity(
    run: Run, reference: nn.Module, inputs: Sequence[Tensor], *, distance: Distance | None = None
) -> tuple[float, ...]:
    """The relative error of each output, or what ``distance`` gives, the worst over the inputs; NaN where any is.

    Raises:
        ValueError: the outputs differ in number or shape.
    """
    if distance is None:
        errors = [relative_error(_Exported(run), reference, image) for image in inputs]
    else:
        errors = [distance(run(image), reference(image), (image.shape[2], image.shape[3])) for image in inputs]
    return tuple(worst(each) for each in zip(*errors, strict=True))


def check_options(format: str, *, opset: int | None = None, half: bool = False, uint8: bool = False) -> None:
    """The format has an opset, half precision, or an input in uint8, where one is asked for.

    Raises:
        UserError: it does not, or torch does not write this opset.
    """
    if opset is not None and format != 'onnx':
        raise UserError(f'opset {opset} is a version of ONNX, and the format is {format!r}: omit it')
    if opset is not None and opset not in OPSETS:
        raise UserError(
            f'opset {opset} is not written here: torch {torch.__version__} and RepNeXt give {OPSETS[0]} to '
            f'{OPSETS[-1]}, choose one of these'
        )
    if half and format not in HALVES:
        reason = 'is in half precision anyway' if format == 'coreml' else 'keeps the weights as they are'
        raise UserError(f'half precision is for {" and ".join(HALVES)}, and {format!r} {reason}: omit it')
    if uint8 and format not in PIXELS_IN_UINT8:
        reason = 'takes images anyway' if format == 'coreml' else 'takes floats'
        raise UserError(f'an input in uint8 is for {", ".join(PIXELS_IN_UINT8)}, and {format!r} {reason}: omit it')


def _check(model: nn.Module, path: Path, format: str, shape: Sequence[int]) -> None:
    if not path.name.endswith(SUFFIXES[format]):
        raise UserError(f"'{path.name}' does not end like format {format!r}: let it end with {SUFFIXES[format][0]}")
    if not path.parent.is_dir():
        raise MissingFileError(f'no folder {path.parent} to write {path.name} to: make it first')
    if path.is_dir() != (format in FOLDERS) and path.exists():
        raise UserError(f"'{path}' is {'a folder' if path.is_dir() else 'a file'} already: give another name")
    if len(shape) != 4 or min(shape) < 1 or min(shape[2:]) < MIN_SIZE:
        raise UserError(f'shape {tuple(shape)} is not an image: give N, C, H, W with H and W at least {MIN_SIZE}')
    # the mode of a container means nothing, and a fused one is new
    if any(module.training for module in model.modules() if isinstance(module, _NormBase | _DropoutNd)):
        raise UserError(f'{type(model).__name__} is in training mode: call model.eval() first')
    kinds = {f'{parameter.dtype} on {parameter.device}' for parameter in model.parameters()} - {'torch.float32 on cpu'}
    if kinds:
        raise UserError(
            f'{type(model).__name__} has parameters in {", ".join(sorted(kinds))}: export model.cpu().float(), with '
            'half=True for float16 weights in the file'
        )


def _check_data(
    format: str, data: str | Path | None, *, int8: bool, bf16: bool, half: bool, images: int, max_drop: float | None
) -> None:
    if images < 1 or (max_drop is not None and not 0 <= max_drop <= 1):
        raise UserError(f'images={images} must be at least 1, and max_drop={max_drop} a share from 0 to 1')
    if data is not None and not Path(data).exists():
        raise MissingFileError(f"data '{data}' does not exist: give a config file, or a folder of images")
    if data is None and (int8 or max_drop is not None):
        raise UserError(
            f'{"int8" if int8 else "max_drop"} needs data: give a config file, or for int8 a folder of images'
        )
    if data is not None and Path(data).is_dir() and not int8:
        raise UserError(f"data '{data}' is a folder, which has no metric: give a config file with a test set")
    if format not in RUNTIMES and data is not None:
        raise UserError(f'{format!r} cannot be tested on data here: {", ".join(RUNTIMES)} can')
    if int8 and format not in QUANTIZED:
        raise UserError(f'int8 is written for {" and ".join(QUANTIZED)}, not for {format!r}: omit it')
    if int8 and half:
        raise UserError('int8 and half exclude each other: omit one')
    if int8 and bf16:
        raise UserError('int8 and bf16 exclude each other, since bfloat16 makes no int8 file faster: omit one')


def _judge(part: Part, config: Config, *, images: int, max_drop: float) -> Callable[[Path], Accuracy]:
    if not part.about.get('task'):
        raise UserError('only a whole model has a metric: export one, or omit data')

    def judge(draft: Path) -> Accuracy:
        accuracy = compare(draft, part.network, config, images=images)
        if not accuracy.drop <= max_drop:
            pairs = ', '.join(
                f'{name} {value:.4f} to {accuracy.exported[name]:.4f}' for name, value in accuracy.model.items()
            )
            raise NotExportedError(
                f'{draft.name} was not written: on {accuracy.images} images {pairs}, a drop of more than {max_drop}: '
                'try another form, or accept it with --max-drop'
            )
        return accuracy

    return judge


def _in_bfloat16(part: Part, draft: Path, *, shape: Sequence[int], uint8: bool, judged: bool) -> None:
    """Mark a draft, and compare it where no metric does."""
    run_in_bfloat16(draft)
    if judged:
        return
    image = probes(part.reference, shape, dynamic=False, uint8=uint8)[0]
    error = worst(parity(open_exported(draft, format='openvino'), part.reference, [image]))
    if not error <= BFLOAT16_TOLERANCE:
        raise NotExportedError(
            f'{draft.name} was not written: in bfloat16 its outputs differ from those of the model by {error:.1e}, '
            f'more than {BFLOAT16_TOLERANCE}: omit bf16, or give a config as data, whose metric decides'
        )


def _check_one_image(model: nn.Module, format: str, shape: Sequence[int], opset: int | None) -> None:
    if format == 'coreml':
        raise UserError('Core ML has no operators for whole detectors: export the backbone (part=backbone)')
    if shape[0] != 1:
        raise UserError(f'a whole detector takes one image at a time, not {shape[0]}: give a shape 1 x C x H x W')
    if opset is not None and opset not in DETECTOR_OPSETS:
        raise UserError(
            f'a whole detector is written with opset {DETECTOR_OPSETS[0]} or {DETECTOR_OPSETS[-1]}, not {opset}: '
            'RoIAlign is aligned from 16 on, and what traces numbers of boxes ends there'
        )


def _runtime(model: nn.Module, draft: Path, format: str, example: torch.Tensor, dynamic: bool) -> tuple[Run, str]:
    if format in RUNTIMES:
        try:
            return open_exported(draft, format=format), RUNTIME_NAMES[format]
        except Exception as error:  # runtimes raise their own
            raise NotExportedError(
                f'{RUNTIME_NAMES[format]} does not open the {format} file ({_first_line(error)}): {_way_out(dynamic)}'
            ) from error
    trace = traced(model, example)
    return (lambda image: trace(image)), 'the trace it was converted from'


def _errors(
    run: Run,
    reference: nn.Module,
    inputs: Sequence[torch.Tensor],
    format: str,
    dynamic: bool,
    distance: Distance | None,
) -> tuple[float, ...]:
    try:
        return parity(run, reference, inputs, distance=distance)
    except Exception as error:  # runtimes raise their own
        raise NotExportedError(
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


RUNTIME_NAMES = {
    'onnx': 'ONNX Runtime',
    'torchscript': 'TorchScript',
    'openvino': 'OpenVINO',
    'ncnn': 'ncnn',
    'mnn': 'MNN',
    'executorch': 'ExecuTorch',
    'litert': 'LiteRT',
    'coreai': 'Core AI',
}


class _Exported(nn.Module):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.run(image)


def _other(size: int, eighths: int) -> int:
    """Another size, odd: smaller, for time, but with room for a stride of 32."""
    smaller = size * eighths // 8 | 1
    return smaller if smaller > 32 else size + 14 | 1
