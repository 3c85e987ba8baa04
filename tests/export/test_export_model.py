"""Files of every format and form compute what the trained network does, or are not there."""

from __future__ import annotations

import copy
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from repnext_mm.errors import UserError
from repnext_mm.export import OPSETS, SUFFIXES, export_model, format_of, open_exported
from repnext_mm.export import export as export_module
from repnext_mm.export.export import check_options
from repnext_mm.models import FORMS
from repnext_mm.reparam import fuse
from tests.conftest import worst_error
from tests.export.networks import tiny

SHAPE = (1, 3, 64, 96)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def cases():
    """Every format and form; torch's ONNX exporter takes seconds, so the least different forms wait."""
    for format in ('onnx', 'torchscript', 'openvino'):  # the others have one form, see test_mobile.py
        for form in FORMS:
            quick = format == 'torchscript' or (format, form) in {('onnx', 'dense'), ('openvino', 'half')}
            yield pytest.param(format, form, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize('format, form', list(cases()))
@torch.no_grad()
def test_any_batch_and_size(format, form, tmp_path):
    network = tiny()
    path = tmp_path / f'net{SUFFIXES[format][0]}'
    report = export_model(fuse(network, form=form)[0], path, format=format, shape=SHAPE, reference=network)
    assert names(tmp_path) == {'net.xml', 'net.bin'} if format == 'openvino' else {path.name}
    assert report.size_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert list(report.errors) == ['output_0', 'output_1', 'output_2', 'output_3']
    assert 0 < max(report.errors.values()) < 1e-5
    assert len({shape[0] for shape in report.shapes}) == 2
    image = torch.randn(3, 3, 33, 75)  # not what the export was checked with
    outputs = open_exported(path, format=format, threads=1)(image)
    assert max(map(worst_error, outputs, network(image))) < 1e-5


def test_onnx_names_its_dimensions(tmp_path):
    onnx = pytest.importorskip('onnx')
    path = tmp_path / 'net.onnx'
    network = fuse(tiny(out_indices=(0, 3)))[0]
    report = export_model(network, path, format='onnx', shape=SHAPE, output_names=['fine', 'coarse'])
    model = onnx.load(str(path))
    (entry,) = model.graph.input
    assert [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim] == [
        'batch',
        3,
        'height',
        'width',
    ]
    assert [output.name for output in model.graph.output] == ['fine', 'coarse']
    assert not any(node.op_type == 'BatchNormalization' for node in model.graph.node)
    assert report.opset == model.opset_import[0].version
    export_model(network, path, format='onnx', shape=SHAPE, dynamic=False)
    (entry,) = onnx.load(str(path)).graph.input
    assert [dim.dim_value for dim in entry.type.tensor_type.shape.dim] == list(SHAPE)


def test_openvino_native_precision_is_an_option(tmp_path):
    network = fuse(tiny(out_indices=(3,)))[0]
    export_model(network, tmp_path / 'net.xml', format='openvino', shape=SHAPE, output_names=['features'])
    (output,) = open_exported(tmp_path / 'net.xml', format='openvino', precision='native')(torch.randn(SHAPE))
    assert output.isfinite().all()
    with pytest.raises(ValueError, match="unknown precision 'int8': choose one of float32, native"):
        open_exported(tmp_path / 'net.xml', format='openvino', precision='int8')


@pytest.mark.parametrize(
    'opset', [pytest.param(11, marks=pytest.mark.slow), 17, pytest.param(18, marks=pytest.mark.slow)]
)
def test_onnx_of_a_version(opset, tmp_path):
    import onnx

    if opset not in OPSETS:
        pytest.skip(f'torch {torch.__version__} writes up to {OPSETS[-1]}')
    network, path = fuse(tiny(out_indices=(3,)))[0], tmp_path / 'net.onnx'
    report = export_model(network, path, format='onnx', shape=SHAPE, opset=opset)
    content = onnx.load(str(path))
    assert [entry.version for entry in content.opset_import if not entry.domain] == [opset]
    assert (report.opset, report.replaced) == (opset, False)
    assert not any(node.op_type == 'Gelu' for node in content.graph.node)
    assert max(report.errors.values()) < 1e-5
    assert export_model(network, path, format='onnx', shape=SHAPE, opset=opset).replaced


@torch.no_grad()
@pytest.mark.parametrize('name', ['net.onnx', 'net.xml'])
def test_weights_in_half_precision(name, tmp_path):
    network = fuse(tiny(out_indices=(3,)))[0]
    whole = tmp_path / f'whole.{name[4:]}'
    export_model(network, whole, format=format_of(name), shape=SHAPE)
    half = export_model(network, tmp_path / name, format=format_of(name), shape=SHAPE, half=True)
    suffix = '.bin' if name.endswith('.xml') else '.onnx'  # where the weights are
    sizes = [path.with_suffix(suffix).stat().st_size for path in (half.path, whole)]
    assert sizes[0] < 0.85 * sizes[1]
    assert 1e-5 < max(half.errors.values()) < 5e-3
    rounded = copy.deepcopy(network).half().float()
    image = torch.randn(2, 3, 79, 41)
    (output,) = open_exported(tmp_path / name, format=format_of(name))(image)
    assert worst_error(output, rounded(image)[0]) < 1e-5


def test_weights_that_half_precision_does_not_hold(tmp_path):
    network = fuse(tiny(out_indices=(3,)))[0]
    network.stages[3].blocks[0].channel_mixer[0].weight.data[0, 0] = 1e5
    with pytest.raises(RuntimeError, match='was not written'):
        export_model(network, tmp_path / 'net.onnx', format='onnx', shape=SHAPE, half=True)
    assert not names(tmp_path)


def test_pixels_in_uint8_are_for_a_graph_that_normalizes(tmp_path):
    with pytest.raises(UserError, match='which the graph has to normalize: give a Normalized model'):
        export_model(tiny(), tmp_path / 'net.pt', format='torchscript', shape=SHAPE, uint8=True)


@pytest.mark.parametrize(
    ('format', 'given', 'words'),
    [
        ('onnx', dict(opset=8), r'opset 8 is not written here: torch .* give 11 to'),
        ('onnx', dict(opset=99), 'opset 99 is not written here'),
        ('openvino', dict(opset=17), "opset 17 is a version of ONNX, and the format is 'openvino'"),
        (
            'torchscript',
            dict(half=True),
            "half precision is for onnx and openvino, and 'torchscript' keeps the weights",
        ),
        ('coreml', dict(uint8=True), "uint8 is for onnx, openvino, torchscript, and 'coreml' takes images anyway"),
        ('coreml', dict(half=True), "'coreml' is in half precision anyway"),
    ],
)
def test_options_of_other_formats(format, given, words):
    with pytest.raises(ValueError, match=words):
        check_options(format, **given)


class Frozen(nn.Module):
    """Its tracer writes the height of the example into the graph."""

    def forward(self, image):
        return image * int(image.shape[2])


def test_frozen_size_is_found(tmp_path):
    with pytest.raises(RuntimeError, match='was not written: in TorchScript .* by output_0 .* try fixed sizes'):
        export_model(Frozen().eval(), tmp_path / 'net.pt', format='torchscript', shape=SHAPE)
    assert not names(tmp_path)
    export_model(Frozen().eval(), tmp_path / 'net.pt', format='torchscript', shape=SHAPE, dynamic=False)


def broken(change):
    def opened(path, *, format):
        run = open_exported(path, format=format)
        return lambda image: tuple(change(output) for output in run(image))

    return opened


def failed(output):
    raise RuntimeError('no such kernel\nmore')


@pytest.mark.parametrize(
    'change, said',
    [
        (
            lambda x: x * 1.001,
            r'differ from those of the model by output_0 1\.0e-03, output_1 1\.0e-03 \(relative\), more '
            r'than 1\.0e-04',
        ),
        (lambda x: x + math.nan, 'output_0 nan'),
        (lambda x: x[..., :1], 'cannot be compared with the model'),
        (failed, r'\(RuntimeError: no such kernel\): try'),
    ],
    ids=['wrong', 'nan', 'shape', 'raises'],
)
def test_a_file_that_computes_something_else_is_never_there(change, said, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, 'open_exported', broken(change))
    network = fuse(tiny(out_indices=(0, 1)))[0]
    (tmp_path / 'old.pt').write_text('an earlier export')
    for name in ('new.pt', 'old.pt'):
        with pytest.raises(RuntimeError, match=said):
            export_model(network, tmp_path / name, format='torchscript', shape=SHAPE)
    assert names(tmp_path) == {'old.pt'}
    assert (tmp_path / 'old.pt').read_text() == 'an earlier export'


def test_nan_weights_are_refused(tmp_path):
    network, _ = fuse(tiny())
    network.stages[3].blocks[0].channel_mixer[0].weight.data[0] = math.nan
    with pytest.raises(RuntimeError, match='output_3 nan .* look for NaN in the weights'):
        export_model(network, tmp_path / 'net.pt', format='torchscript', shape=SHAPE)
    assert not names(tmp_path)


def test_wrong_arguments_are_one_sentence(tmp_path, monkeypatch):
    network, path = tiny(), tmp_path / 'net.pt'

    def refused(kind=UserError, model=network, path=path, format='torchscript', shape=SHAPE, **options):
        with pytest.raises(kind) as raised:
            export_model(model, path, format=format, shape=shape, **options)
        assert '\n' not in str(raised.value)
        return str(raised.value)

    assert "unknown format 'tensorrt': choose one of onnx, torchscript" in refused(format='tensorrt')
    assert "'net.pt' does not end like format 'onnx': let it end with .onnx" in refused(format='onnx')
    assert 'make it first' in refused(path=tmp_path / 'none' / 'net.pt')
    assert 'shape (1, 3, 16, 16) is not an image' in refused(shape=(1, 3, 16, 16))
    assert 'RepNeXt takes (N, 3, H, W)' in refused(ValueError, shape=(1, 1, 64, 64))
    assert '1 output names for 4 outputs' in refused(output_names=['one'])
    assert 'call model.eval() first' in refused(model=tiny().train())
    assert 'parameters in torch.float16 on cpu' in refused(model=tiny().half())
    (tmp_path / 'folder.pt').mkdir()
    assert 'is a folder already' in refused(path=tmp_path / 'folder.pt')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert "format 'openvino' needs onnx, onnxscript, openvino, which are not installed" in refused(
        path=tmp_path / 'net.xml', format='openvino'
    )
    assert names(tmp_path) == {'folder.pt'}


def test_format_of_a_name():
    assert [format_of(f'a/net{end}') for end in ('.onnx', '.pt', '.torchscript', '.xml', '.mlpackage')] == [
        'onnx',
        'torchscript',
        'torchscript',
        'openvino',
        'coreml',
    ]
    with pytest.raises(ValueError, match=r"'net.mlmodel' would be a Core ML neuralnetwork.*end with .mlpackage"):
        format_of('net.mlmodel')
    assert [format_of(f'a/net{end}') for end in ('.ncnn.param', '.mnn', '.pte', '.tflite')] == [
        'ncnn',
        'mnn',
        'executorch',
        'litert',
    ]
    for name in ('net.engine', 'net.param', '.onnx'):
        with pytest.raises(ValueError, match=rf"'{name}' does not name its format: let it end with .onnx"):
            format_of(name)


def test_opening_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="format 'coreml' has no runtime here"):
        open_exported(tmp_path / 'net.mlpackage', format='coreml')
    with pytest.raises(UserError, match='no exported network at'):
        open_exported(tmp_path / 'net.pt', format='torchscript')
    with pytest.raises(ValueError, match='threads=0 computes nothing'):
        open_exported(tmp_path / 'net.pt', format='torchscript', threads=0)
