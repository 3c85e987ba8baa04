"""Files for bfloat16: coordinates of boxes stay in float32, and a metric decides."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from repnext_mm.errors import UserError
from repnext_mm.export import bfloat16, export_part, open_exported
from repnext_mm.export.bfloat16 import FEATURES, check_bfloat16, run_in_bfloat16
from repnext_mm.export.openers import multiplies_bfloat16
from repnext_mm.export.predict import open_file
from tests.export.networks import DIGITS as CONFIG
from tests.export.test_detectors import written

openvino = pytest.importorskip('openvino')
pytestmark = pytest.mark.filterwarnings('ignore:To copy construct:UserWarning:mmdet', 'ignore:torch.meshgrid')
needs_bfloat16 = pytest.mark.skipif(not multiplies_bfloat16(), reason='this processor does not multiply bfloat16')


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp('detector')
    torch.manual_seed(0)
    config, checkpoint = written('cascade_mask_rcnn', folder)
    export_part(config, folder / 'det.xml', checkpoint=checkpoint, shape=(1, 3, 96, 128))
    assert run_in_bfloat16(folder / 'det.xml') > 100
    return folder / 'det.xml'


def test_what_makes_boxes_is_marked(detector):
    layers = ElementTree.parse(detector).findall('layers/layer')
    marked = {layer.get('type') for layer in layers if layer.find('rt_info/attribute[@name="precise"]') is not None}
    assert {'Exp', 'Gather', 'NonMaxSuppression'} <= marked  # offsets to boxes, the best of them, to their levels
    assert not marked & {*FEATURES, 'ROIAlign', 'Const', 'Parameter', 'Gelu'}
    assert open_file(detector).about['precision'] == 'bfloat16'


@needs_bfloat16
def test_what_openvino_makes_of_it(detector):
    compiled = openvino.Core().compile_model(str(detector), 'CPU', {'INFERENCE_PRECISION_HINT': 'bf16'})

    def kind(layer):
        return tuple(layer.get_rt_info()[key].astype(str) for key in ('layerType', 'runtimePrecision'))

    layers = compiled.get_runtime_model().get_ops()
    assert {kind(layer) for layer in layers if kind(layer)[0] == 'Convolution'} == {('Convolution', 'bf16')}
    cuts = [layer for layer in layers if kind(layer)[0] == 'ROIAlign']
    assert len(cuts) > 4
    for layer in cuts:
        assert kind(layer) == ('ROIAlign', 'bf16')
        assert kind(layer.input_value(1).get_node()) == ('Gather', 'f32')  # not one in bf16, cast back
    image = np.random.default_rng(0).uniform(0, 255, (1, 3, 96, 128)).astype(np.float32)
    boxes, scores, labels, masks = open_file(detector).run(image)
    assert boxes.shape == (len(scores), 4) and np.isfinite(boxes).all() and len(masks) == len(labels)


@pytest.mark.slow
@needs_bfloat16
def test_a_classifier_with_and_without_a_metric(classifier, tmp_path):
    _, options, checkpoint = classifier
    given = dict(checkpoint=checkpoint, options=options, shape=(1, 3, 64, 64), normalize=True, bf16=True)
    done = export_part(CONFIG, tmp_path / 'a.xml', data=CONFIG, images=24, max_drop=1.0, **given)
    assert done.export.accuracy.images == 24
    export_part(CONFIG, tmp_path / 'b.xml', **given)
    export_part(CONFIG, tmp_path / 'c.xml', **{**given, 'bf16': False})
    image = torch.rand(1, 3, 64, 64) * 255
    (half,), (whole,) = (open_exported(tmp_path / name, format='openvino')(image) for name in ('b.xml', 'c.xml'))
    assert 1e-4 < (half - whole).abs().max() / whole.abs().max() < 5e-2


def test_refused(monkeypatch):
    with pytest.raises(UserError, match='int8 and bf16 exclude each other, since bfloat16 makes no int8 file faster'):
        export_part(CONFIG, 'a.xml', data=CONFIG, int8=True, bf16=True)
    given = dict(whole=True, detects=True, judged=True)
    monkeypatch.setattr(bfloat16, 'multiplies_bfloat16', lambda: True)
    check_bfloat16('openvino', **given)
    with pytest.raises(UserError, match="bf16 is for OpenVINO, and the format is 'onnx': let the name end with .xml"):
        check_bfloat16('onnx', **given)
    with pytest.raises(UserError, match='bf16 is for whole models, which say how they are to be run: omit it, and set'):
        check_bfloat16('openvino', **{**given, 'whole': False})
    with pytest.raises(UserError, match='bf16 moves boxes a little, and only a metric tells how much that costs: give'):
        check_bfloat16('openvino', **{**given, 'judged': False})
    monkeypatch.setattr(bfloat16, 'multiplies_bfloat16', lambda: False)
    with pytest.raises(UserError, match='this processor does not multiply bfloat16, so that its accuracy cannot be'):
        check_bfloat16('openvino', **given)
