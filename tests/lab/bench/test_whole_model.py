"""Whole models: parts that add up, equal work for both forms, and nothing timed that differs."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from repnext_mm.lab.bench import whole_model
from repnext_mm.lab.bench.whole_model import PARTS, Observed, Stopwatch, measure_whole_model
from tests.conftest import randomize
from tests.tools.running import ROOT

DETECTOR = ROOT / 'configs/mask_rcnn_repnext_m0_digits.py'
SEGMENTOR = ROOT / 'configs/semantic_fpn_repnext_m0_digits.py'
QUICK = dict(rounds=2, warmup_rounds=0, warmup_s=0)
SMALL = {'model.test_cfg.rpn.max_per_img': 20, 'model.test_cfg.rcnn.max_per_img': 5}
pytestmark = pytest.mark.filterwarnings('ignore:Default ..avg_non_ignore', 'ignore:.*meshgrid')


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'image.png'
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8))
    return path


def built(path: Path, options: dict) -> nn.Module:
    config = Config.fromfile(path)
    config.merge_from_dict(options)
    init_default_scope(config.default_scope)
    return randomize(MODELS.build(config.model))


def test_detector_with_random_weights(image):
    rounds = []
    found = measure_whole_model(DETECTOR, image=image, options=SMALL, progress=lambda: rounds.append(1), **QUICK)
    assert len(rounds) == 2
    assert (found.config, found.trained, found.image) == ('mask_rcnn_repnext_m0_digits', False, 'image.png')
    assert found.image_shape == (96, 128)
    assert found.input_shape[0] % 32 == found.input_shape[1] % 32 == 0
    assert found.counts == {'proposals': 20, 'detections': 5}
    assert 0 < found.error < 1e-4
    assert found.agreement is None
    assert 'norms' in found.fusion and '-> 0' in found.fusion
    for times in found.times.values():
        assert list(times) == [*PARTS, 'total']
        assert all(latency.n == 2 and latency.median_ms > 0 for latency in times.values())
        # the median of two is their mean, so the parts' medians add up
        total = sum(latency.median_ms for part, latency in times.items() if part != 'total')
        assert times['total'].median_ms == pytest.approx(total)


def test_trained_detector_finds_the_same(image, tmp_path):
    model = built(DETECTOR, SMALL)
    with torch.no_grad():
        model.roi_head.bbox_head.fc_cls.weight *= 100  # decided, as after training
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'weights.pth')
    found = measure_whole_model(DETECTOR, tmp_path / 'weights.pth', image=image, options=SMALL, **QUICK)
    assert found.trained
    assert found.counts['detections'] == 5
    assert found.agreement == 1


def test_segmentor_on_the_synthetic_image():
    found = measure_whole_model(SEGMENTOR, **QUICK)
    assert found.image == 'synthetic, smoothed noise of seed 0'
    assert found.image_shape == (480, 640)
    assert found.counts == {}
    assert found.agreement > 0.999
    assert list(found.times['fused']) == [*PARTS, 'total']


def test_the_hook_of_the_config_fuses(image):
    hook = dict(type='FuseBackboneHook', form='keep_norms', priority='LOW')
    options = {'custom_hooks': [hook]}
    found = measure_whole_model(SEGMENTOR, image=image, options=options, **QUICK)
    assert 'norms 53 -> 17' in found.fusion


def test_models_are_as_before(image, monkeypatch):
    seen = []
    load = whole_model.loaded_model
    monkeypatch.setattr(
        whole_model, 'loaded_model', lambda *args, **options: seen.append(load(*args, **options)) or seen[0]
    )
    measure_whole_model(SEGMENTOR, image=image, **QUICK)
    assert all('forward' not in vars(module) for module in seen[0].modules())
    assert not any(name in vars(seen[0]) for name in ('postprocess_result', 'add_pred_to_datasample'))


def test_what_differs_is_not_timed(image, monkeypatch):
    monkeypatch.setattr(whole_model, 'TOLERANCE', 1e-12)
    with pytest.raises(RuntimeError, match='the fused model differs from the trained one by .* nothing was timed'):
        measure_whole_model(SEGMENTOR, image=image, **QUICK)


def test_a_part_inside_another_counts_for_itself():
    watch = Stopwatch(torch.device('cpu'))
    with watch.part('outer'):
        time.sleep(0.01)
        with watch.part('inner'):
            time.sleep(0.04)
        time.sleep(0.01)
    assert 20 <= watch.ms['outer'] < 40 <= watch.ms['inner']


def test_both_forms_hand_on_the_same_boxes():
    class Head(nn.Module):
        def predict_by_feat(self, scores):
            return [InstanceData(scores=scores[0, 0])]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.bbox_head = nn.Conv2d(3, 1, 1), Head()

        def test_step(self, data):
            return self.bbox_head.predict_by_feat(self.backbone(data['inputs'][0]))

    def pipeline(results):
        return {'inputs': torch.zeros(1, 3, *results['img_shape']), 'data_samples': None}

    first, second = (Observed(Model(), pipeline, np.zeros((4, 5, 3), np.uint8)) for _ in range(2))
    with torch.no_grad():
        expected = first.looked_at({})
        alone, replayed = second.looked_at({}), second.looked_at(first.handed_on)
    assert not torch.equal(alone[0].scores, expected[0].scores)
    assert torch.equal(replayed[0].scores, expected[0].scores)
    assert first.counts == {'detections': 4}
    assert [tuple(tensor.shape) for tensor in first.tensors] == [(1, 1, 4, 5)] * 2  # backbone's, and given to the head


@pytest.mark.parametrize(
    ('arguments', 'kind', 'message'),
    [
        (dict(image='nowhere.jpg'), ValueError, "image 'nowhere.jpg' does not exist"),
        (dict(image=__file__), ValueError, 'cannot be read as an image'),
        (dict(rounds=0), ValueError, 'rounds=0: measure at least one round'),
    ],
    ids=['missing', 'no image', 'rounds'],
)
def test_errors(arguments, kind, message):
    with pytest.raises(kind, match=message):
        measure_whole_model(SEGMENTOR, **{**QUICK, **arguments})


def test_a_bare_backbone_is_no_whole_model(tmp_path):
    (tmp_path / 'net.py').write_text("model = dict(type='RepNeXt', arch='m0')\n")
    with pytest.raises(ValueError, match="model 'RepNeXt' has no backbone and data_preprocessor: give the config of"):
        measure_whole_model(tmp_path / 'net.py', **QUICK)
