"""Whole detectors in one ONNX file find what mmdet's own inference finds."""

from __future__ import annotations

import json

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope

from repnext_mm.errors import UserError
from repnext_mm.export import export_part, load_part
from repnext_mm.export.detectors import detection_errors, detector_graph
from repnext_mm.export.predict import open_file
from tests.conftest import randomize
from tests.export.detectors import DETECTORS

# of mmdet's points and masks
pytestmark = pytest.mark.filterwarnings(
    'ignore:torch.meshgrid',
    'ignore:To copy construct:UserWarning:mmdet',
    'ignore:DeprecationWarning. .num_anchors. is deprecated',
)
PIPELINE = """
test_dataloader = dict(dataset=dict(type='CocoDataset', metainfo=dict(classes=('a', 'b', 'c')), pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(160, 128), keep_ratio=True),
    dict(type='PackDetInputs')]))
"""


CLASS_LAYERS = ('atss_cls', 'conv_cls', 'gfl_cls', 'retina_cls', 'rtm_cls')


@torch.no_grad()
def randomized(model):
    """Norms that hide nothing, and scores that are far enough apart to be chosen among: no ties at 1."""
    randomize(model)
    last = [p for name, p in model.named_parameters() if any(f'{layer}.' in name for layer in CLASS_LAYERS)]
    for name, parameter in model.named_parameters():
        if ('cls' in name or 'reg' in name or 'obj' in name) and name.endswith('weight') and parameter.dim() == 4:
            parameter.normal_(0, 0.15)
    model.eval()
    if last:
        logits = model.bbox_head(model.extract_feat(torch.randn(1, 3, 96, 128)))[0]
        spread = torch.cat([level.flatten() for level in logits]).std()
        for parameter in {id(p): p for p in last}.values():
            parameter.copy_(parameter / spread if parameter.dim() == 4 else torch.full_like(parameter, -1.0))
    return model


def written(name, folder, **changes):
    """A config and a checkpoint of a tiny detector with random weights."""
    config = folder / f'{name}.py'
    config.write_text(f"default_scope = 'mmdet'\nmodel = {DETECTORS[name] | changes!r}\n{PIPELINE}")
    model = randomized(load_part(config).network)
    torch.save({'state_dict': model.state_dict()}, folder / f'{name}.pth')
    return config, str(folder / f'{name}.pth')


@pytest.mark.parametrize('name', sorted(DETECTORS))
@torch.no_grad()
def test_one_file_finds_what_the_model_finds(name, tmp_path):
    onnx = pytest.importorskip('onnx')
    config, checkpoint = written(name, tmp_path)
    done = export_part(config, tmp_path / 'det.onnx', checkpoint=checkpoint, shape=(1, 3, 96, 128))
    report = done.export
    names = ['boxes', 'scores', 'labels', 'masks'][: len(report.errors)]
    assert list(report.errors) == names
    assert ('masks' in names) == (name in ('mask_rcnn', 'cascade_mask_rcnn', 'rtmdet_ins'))
    assert report.shapes == ((1, 3, 96, 128), (1, 3, 37, 81))
    assert max(report.errors['boxes'], report.errors['scores']) < 5e-5
    content = onnx.load(str(report.path))
    assert {node.domain for node in content.graph.node} <= {'', 'ai.onnx'}
    about = json.loads({entry.key: entry.value for entry in content.metadata_props}['repnext_mm'])
    assert (about['task'], about['classes'], about['pixels']) == ('detection', ['a', 'b', 'c'], True)
    assert about['steps'] == [{'resize': [160, 128], 'keep_ratio': True}]
    # an image that the export was not checked with
    part = load_part(config, checkpoint=checkpoint, normalize=None)
    pixels = torch.rand(1, 3, 70, 101) * 255
    found = [torch.from_numpy(output) for output in open_file(report.path).run(pixels.numpy())]
    expected = part.reference(pixels)
    assert len(expected[0]) > 5
    assert max(part.distance(found, expected, (70, 101))) < 1e-3


@pytest.mark.parametrize(
    ('name', 'file', 'threshold', 'mask'),
    [
        pytest.param('mask_rcnn', 'det.onnx', 'model.test_cfg.rcnn.score_thr', (28, 28), marks=pytest.mark.slow),
        ('mask_rcnn', 'det.xml', 'model.test_cfg.rcnn.score_thr', (28, 28)),
        ('rtmdet_ins', 'det.onnx', 'model.test_cfg.score_thr', (8, 8)),
    ],
)
@torch.no_grad()
def test_an_image_without_objects(name, file, threshold, mask, tmp_path):
    """Neither that of the trace, nor one at run time."""
    pytest.importorskip('openvino')
    config, checkpoint = written(name, tmp_path)
    done = export_part(
        config,
        tmp_path / file,
        checkpoint=checkpoint,
        shape=(1, 3, 64, 64),
        options={threshold: 0.99999},
    )
    boxes, scores, labels, masks = open_file(done.export.path).run(torch.zeros(1, 3, 64, 64).numpy())
    assert (boxes.shape, scores.shape, labels.shape, masks.shape) == ((0, 4), (0,), (0,), (0, *mask))


def test_distance_between_detections():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 40]])
    scores, labels = torch.tensor([0.9, 0.8]), torch.tensor([1, 2])
    options = dict(crops=True, mask_threshold=0.5)
    swapped = boxes[[1, 0]] + 0.5, scores[[1, 0]], labels[[1, 0]]
    assert detection_errors(swapped, (boxes, scores, labels), (50, 100), **options) == (0.005, 0, 0)
    fewer = boxes[:1], scores[:1], labels[:1]
    assert detection_errors(fewer, (boxes, scores, labels), (50, 100), **options)[2] == 0.5
    other = boxes, scores, labels.flip(0)
    assert detection_errors(other, (boxes, scores, labels), (50, 100), **options) == (0, 0, 1)
    empty = boxes[:0], scores[:0], labels[:0]
    assert detection_errors(empty, empty, (50, 100), **options) == (0, 0, 0)
    assert detection_errors(empty, fewer, (50, 100), **options)[2] == 1


@pytest.mark.parametrize(
    ('name', 'change', 'said'),
    [
        ('fcos', {'bbox_head': 'FoveaHead'}, "a 'FoveaHead' is not exported here: ATSSHead, FCOSHead"),
        ('fcos', {'nms': ConfigDict(type='soft_nms')}, "test_cfg.nms.type='soft_nms' is not exported here"),
        ('mask_rcnn', {'roi_head': 'PointRendRoIHead'}, "a 'PointRendRoIHead' is not exported here"),
    ],
    ids=['head', 'nms', 'roi_head'],
)
def test_what_is_not_exported_is_one_sentence(name, change, said):
    init_default_scope('mmdet')
    model = MODELS.build(ConfigDict(DETECTORS[name]))
    ((where, value),) = change.items()
    if where == 'nms':
        model.bbox_head.test_cfg.nms = value
    else:
        head = getattr(model, where)
        head.__class__ = type(value, (type(head),), {})
    with pytest.raises(UserError, match=said):
        detector_graph(model)
