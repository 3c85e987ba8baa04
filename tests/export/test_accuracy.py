"""Files are judged by the metric of the data they are for, int8 among them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from repnext_mm.apis.config import load_config
from repnext_mm.errors import MissingPackageError, UserError
from repnext_mm.export import NotExportedError, export_model, export_part
from repnext_mm.export.accuracy import Accuracy, evaluate, evaluate_file
from repnext_mm.export.predict import open_file
from repnext_mm.export.quantize import check_quantizer, in_float, quantize_openvino, signal_to_noise
from tests.export.networks import DIGITS as CONFIG
from tests.tools.running import ROOT


def exported(classifier, name, **given):
    folder, options, checkpoint = classifier
    shape = (1, 3, 64, 64)
    return export_part(CONFIG, folder / name, checkpoint=checkpoint, options=options, shape=shape, **given)


@pytest.mark.parametrize(
    ('name', 'quantizer'),
    [
        ('int8.onnx', 'onnxruntime'),
        pytest.param('int8.xml', None, marks=pytest.mark.slow),
        pytest.param('int8.xml', 'nncf', marks=pytest.mark.slow),
    ],
)
def test_int8_with_a_metric(name, quantizer, classifier):
    if name.endswith('.xml'):
        pytest.importorskip('openvino')
    if quantizer == 'nncf':
        pytest.importorskip('nncf')
    _, options, _ = classifier
    given = dict(normalize=True, uint8=name.endswith('.onnx'), quantizer=quantizer)
    done = exported(classifier, name, int8=True, data=CONFIG, images=24, max_drop=1.0, **given)
    report = done.export
    assert done.form == 'balanced'
    assert report.path.is_file()
    assert report.calibrated_with == 24
    assert report.accuracy.images == 24
    assert list(report.accuracy.model) == list(report.accuracy.exported) == ['accuracy/top1']
    assert 10 < report.signal_to_noise_db < 80
    found = evaluate_file(report.path, CONFIG, images=24, options=options)
    assert found == report.accuracy.exported
    assert open_file(report.path).about['dtype'] == ('uint8' if name.endswith('.onnx') else 'float32')
    assert open_file(report.path).about['classes'] == [f'digit {number}' for number in range(10)]
    if name.endswith('.onnx'):
        onnx = pytest.importorskip('onnx')
        network = onnx.load(str(report.path))
        kinds = [node.op_type for node in network.graph.node]
        assert {node.domain for node in network.graph.node} <= {'', 'ai.onnx'}
        assert 'QuantizeLinear' in kinds
        computed = {node.output[0]: node.op_type for node in network.graph.node}
        for node in network.graph.node:
            if node.op_type == 'Conv':
                groups = next(entry.i for entry in node.attribute if entry.name == 'group')
                assert (computed.get(node.input[1]) == 'DequantizeLinear') == (groups == 1)


def test_nncf_quantizes_dense_convolutions_only(tmp_path):
    pytest.importorskip('nncf')
    openvino = pytest.importorskip('openvino')
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, groups=8), torch.nn.Conv2d(8, 4, 1)
    )
    export_model(network, tmp_path / 'net.onnx', format='onnx', shape=(1, 3, 32, 32), output_names=('y',))
    images = [np.random.default_rng(number).normal(size=(1, 3, 32, 32)).astype(np.float32) for number in range(4)]
    quantized, count = quantize_openvino(tmp_path / 'net.onnx', iter(images))
    assert count == 4
    assert {'Convolution', 'GroupConvolution'} < {node.get_type_name() for node in quantized.get_ops()}
    ranges = [node for node in quantized.get_ops() if node.get_type_name() == 'FakeQuantize']
    behind = {target.get_node().get_type_name() for node in ranges for target in node.output(0).get_target_inputs()}
    assert 'Convolution' in behind
    assert 'GroupConvolution' not in behind
    found = openvino.Core().compile_model(quantized, 'CPU')(images[0])[0]
    expected = network(torch.from_numpy(images[0])).detach().numpy()
    assert 15 < signal_to_noise([found], [expected]) < 80
    with pytest.raises(UserError, match='there are no images to calibrate with'):
        quantize_openvino(tmp_path / 'net.onnx', iter([]))


def test_nncf_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda _: None)
    with pytest.raises(MissingPackageError, match="the quantizer 'nncf' is not installed: pip install nncf"):
        check_quantizer('nncf', 'openvino')


def test_a_folder_calibrates_and_a_float_file_has_the_metric_of_the_model(classifier, tmp_path):
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f'{number}.png')
    report = exported(classifier, 'folder.onnx', int8=True, data=tmp_path, opset=17).export
    assert (report.calibrated_with, report.accuracy) == (3, None)
    report = exported(classifier, 'float.onnx', data=CONFIG, images=16, opset=17).export
    assert report.accuracy.drop == 0
    assert report.signal_to_noise_db is None


def test_a_drop_is_refused_and_the_earlier_file_kept(classifier, monkeypatch):
    folder, *_ = classifier
    (folder / 'kept.onnx').write_text('an earlier export')
    bad = Accuracy(model={'accuracy/top1': 0.9}, exported={'accuracy/top1': 0.88}, images=16)
    monkeypatch.setattr('repnext_mm.export.export.compare', lambda *_, **__: bad)
    with pytest.raises(
        NotExportedError, match=r'on 16 images accuracy/top1 0.9000 to 0.8800, a drop of more than 0.001'
    ):
        exported(classifier, 'kept.onnx', data=CONFIG, images=16, opset=17)
    assert (folder / 'kept.onnx').read_text() == 'an earlier export'
    given = dict(data=CONFIG, images=16, opset=17, max_drop=0.03)
    assert exported(classifier, 'other.onnx', **given).export.accuracy is bad


def test_drop_is_the_largest():
    assert Accuracy(model={'a': 0.5, 'b': 0.5}, exported={'a': 0.6, 'b': 0.4}, images=1).drop == pytest.approx(0.1)
    assert Accuracy(model={'a': 0.5}, exported={'a': float('nan')}, images=1).drop == 1


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        (dict(int8=True), 'int8 needs data: give a config file, or for int8 a folder of images'),
        (dict(quantizer='nncf'), "quantizer='nncf' is for int8: give that too, or omit it"),
        (dict(int8=True, data='.', quantizer='nncf'), "NNCF quantizes for OpenVINO, and the format is 'onnx'"),
        (dict(int8=True, data='.', quantizer='tflite'), "unknown quantizer 'tflite': choose one of onnxruntime, nncf"),
        (dict(data='none'), "data 'none' does not exist"),
        (dict(data='.'), "data '.' is a folder, which has no metric"),
        (dict(int8=True, half=True, data='.'), 'int8 and half exclude each other'),
        (dict(data=str(CONFIG), images=0), 'images=0 must be at least 1'),
        (dict(uint8=True, normalize=False), 'an input in uint8 is pixels, which the graph has to normalize'),
    ],
    ids=[
        'no data',
        'nothing to quantize',
        'not for ONNX',
        'unknown',
        'nowhere',
        'folder',
        'half',
        'no images',
        'not normalized',
    ],
)
def test_options_that_make_no_export(given, said, tmp_path):
    with pytest.raises(UserError, match=said):
        export_part(CONFIG, tmp_path / 'net.onnx', **given)


@pytest.mark.slow  # the scenes are made first
def test_metrics_of_some_images_of_coco(tmp_path):
    """Objects of images that were not looked at do not count."""
    config = ROOT / 'configs/mask_rcnn_repnext_m0_digits.py'
    pytest.importorskip('pycocotools')
    options = {'data_root': str(tmp_path / 'scenes')}
    config = load_config(config, options=options)

    def truth(item):
        sample = item['data_samples']
        instances = sample.gt_instances
        instances.bboxes = instances.bboxes.tensor
        scale = torch.tensor(sample.scale_factor).repeat(2)
        instances.bboxes = instances.bboxes / scale
        instances.scores = torch.ones(len(instances))
        instances.masks = torch.from_numpy(instances.masks.masks).bool()
        sample.pred_instances = instances
        return sample

    assert evaluate(truth, config, images=5) == {'coco/bbox_mAP': 1.0, 'coco/segm_mAP': 1.0}


def test_signal_to_noise():
    ones = np.ones((4, 4), np.float32)
    assert signal_to_noise([ones * 1.1], [ones]) == pytest.approx(20, abs=1e-3)
    assert signal_to_noise([ones], [ones]) == float('inf')


def test_depthwise_stays_in_float():
    onnx = pytest.importorskip('onnx')
    helper = onnx.helper
    weights = [
        helper.make_tensor(name, 1, shape, [0.0] * n)
        for name, shape, n in (('d', [4, 1, 1, 1], 4), ('p', [4, 4, 1, 1], 16))
    ]
    nodes = [
        helper.make_node('Conv', ['x', 'd'], ['y'], name='depthwise', group=4),
        helper.make_node('Conv', ['y', 'p'], ['z'], name='pointwise', group=1),
        helper.make_node('MatMul', ['z', 'y'], ['o'], name='computed'),
    ]
    graph = helper.make_graph(nodes, 'g', [], [], weights)
    assert in_float(helper.make_model(graph)) == ['depthwise', 'computed']
