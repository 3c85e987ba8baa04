"""A model in both forms on one image, against the frameworks' own inference; findings as rows and areas."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData

from repnext_mm.apis import load_config
from repnext_mm.data.scene import compose_scene
from repnext_mm.data.scene_files import CLASSES
from repnext_mm.lab.demo.app_inputs import Pair
from repnext_mm.lab.demo.app_page import latency_rows, note
from repnext_mm.lab.demo.app_results import (
    DIFFERENCES,
    FINDINGS,
    FUSED,
    MAX_AREAS,
    MAX_SIDE,
    TRAIN,
    Findings,
    Outcome,
    for_screen,
    load_forms,
    run_forms,
)
from repnext_mm.timing import Latency
from tests.conftest import randomize
from tests.tools.running import ROOT

CONFIGS = {
    'mmseg': ROOT / 'configs/semantic_fpn_repnext_m0_digits.py',
    'mmdet': ROOT / 'configs/mask_rcnn_repnext_m0_digits.py',
    'mmpretrain': ROOT / 'configs/repnext_m0_digits_cls.py',
}
NAMES = {'mmseg': ('background', *CLASSES), 'mmdet': CLASSES, 'mmpretrain': CLASSES}


@pytest.fixture(scope='module')
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp('images') / 'scene.jpg'
    cv2.imwrite(str(path), compose_scene(split='val', index=0).image[..., ::-1])
    return path


def write_weights(scope, path):
    """Random weights, as training leaves them; a detector is sure of itself."""
    config = load_config(CONFIGS[scope])
    init_default_scope(scope)
    torch.manual_seed(0)
    model = randomize(MODELS.build(config.model))
    if scope == 'mmdet':
        model.roi_head.bbox_head.fc_cls.weight.data *= 100
    palette = [[10 * index, 0, 255 - index] for index in range(len(NAMES[scope]))]
    meta = {'dataset_meta': {'classes': NAMES[scope], 'palette': palette}}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, path)
    return path


@pytest.mark.parametrize('scope', CONFIGS)
def test_both_forms_of_a_model(scope, image, tmp_path):
    forms = load_forms(Pair(CONFIGS[scope], write_weights(scope, tmp_path / 'weights.pth')))
    assert forms.classes == NAMES[scope]
    assert forms.colors[1] == '#0a00fe'
    assert (forms.report.norms_before, forms.report.norms_after) == (53, 0)
    outcome = run_forms(forms, str(image), score_threshold=0.05, rounds=3)
    assert outcome.image.tolist() == cv2.imread(str(image))[..., ::-1].tolist()
    assert outcome.findings.rows == independent_rows(scope, forms, image)
    assert all(area.shape == outcome.image.shape[:2] for area, _ in outcome.findings.areas)
    numbers = {name: float(text.split()[0]) for name, text in outcome.differences.items()}
    assert len(numbers) == {'mmdet': 4, 'mmseg': 3, 'mmpretrain': 2}[scope]
    assert all(value < (20 if 'pixels of' in name else 2e-2) for name, value in numbers.items())
    assert 0 < numbers['features of the backbone, relative'] < 1e-4
    for part in ('backbone', 'whole network'):
        assert set(outcome.latency[part]) == {TRAIN, FUSED}
        assert all(value.n == 3 and value.median_ms > 0 for value in outcome.latency[part].values())


def independent_rows(scope, forms, image):
    """The same rows, from the framework's own inference."""
    model, names = forms.fused, forms.classes
    model.cfg = forms.subject.config
    if scope == 'mmseg':
        from mmseg.apis import inference_model

        labels, counts = inference_model(model, str(image)).pred_sem_seg.data.unique(return_counts=True)
        order = counts.argsort(descending=True, stable=True).tolist()
        return [(names[labels[place]], f'{counts[place].item() / counts.sum().item():.2%}') for place in order]
    if scope == 'mmpretrain':
        from mmpretrain import ImageClassificationInferencer

        model._config = forms.subject.config
        scores = ImageClassificationInferencer(model, classes=names)(str(image))[0]['pred_scores']
        return [(names[label], f'{scores[label]:.4f}') for label in np.argsort(-scores)[:5]]
    from mmdet.apis import inference_detector

    found = inference_detector(model, str(image)).pred_instances
    found = found[found.scores >= 0.05]
    return [
        (str(number), names[label], f'{score:.3f}', ', '.join(str(round(value)) for value in box))
        for number, (label, score, box) in enumerate(
            zip(found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist(), strict=True), start=1
        )
    ][:MAX_AREAS]


def test_a_network_with_nothing_to_fuse(image, tmp_path):
    torch.manual_seed(0)
    config = load_config(CONFIGS['mmpretrain'])
    config.model.backbone.deploy = True
    config.model.head.deploy = True
    config.test_dataloader.dataset.type = 'Nowhere'  # then classes have no names
    config.dump(str(tmp_path / 'net.py'))
    init_default_scope('mmpretrain')
    torch.save({'state_dict': MODELS.build(config.model).state_dict()}, tmp_path / 'net.pth')
    forms = load_forms(Pair(tmp_path / 'net.py', tmp_path / 'net.pth'))
    outcome = run_forms(forms, str(image), rounds=3)
    assert outcome.differences == {}
    assert {part: list(found) for part, found in outcome.latency.items()} == {
        'backbone': [TRAIN],
        'whole network': [TRAIN],
    }
    assert all(name.startswith('class ') for name, _ in outcome.findings.rows)
    assert 'Nothing to fuse' in note(forms, outcome)
    assert latency_rows(outcome)[0][2:] == ['', '']


class Planted:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    torch.save({'state_dict': {}, 'meta': Planted(tmp_path / 'ran')}, tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match=r"was not read: it asks for 'pathlib"):
        load_forms(Pair(CONFIGS['mmseg'], tmp_path / 'weights.pth'))
    assert not (tmp_path / 'ran').exists()


def test_latency_in_words():
    quick, slow = (Latency(median_ms=ms, p10_ms=ms - 0.5, p90_ms=ms + 1, n=7) for ms in (8.0, 10.0))
    outcome = Outcome(
        image=np.zeros((1, 1, 3), np.uint8),
        input_shape=(1, 3, 160, 128),
        findings=Findings(columns=(), rows=[], left_out=4),
        differences={},
        latency={'backbone': {TRAIN: slow, FUSED: quick}, 'whole network': {TRAIN: slow, FUSED: slow}},
        threads=2,
    )
    assert latency_rows(outcome) == [
        ['backbone', '10.0 (9.5 to 11.0)', '8.0 (7.5 to 9.0)', '1.25'],
        ['whole network', '10.0 (9.5 to 11.0)', '10.0 (9.5 to 11.0)', '1.00'],
    ]
    text = note(SimpleNamespace(device='cpu', report='fused 3 modules'), outcome)
    assert '7 rounds in turns, input 1x3x160x128, cpu, threads: 2' in text
    assert 'Backbone: fused 3 modules.' in text
    assert '4 further results are not marked in the image.' in text


def instances(scores, labels, *, shift=0.0, masks=True):
    count = len(scores)
    boxes = torch.tensor([[1.2, 2.0, 5.6, 6.0]]).repeat(count, 1) + shift
    found = InstanceData(bboxes=boxes, scores=torch.tensor(scores), labels=torch.tensor(labels, dtype=torch.long))
    if masks:
        found.masks = torch.arange(count * 64).reshape(count, 8, 8) % 3 == 0
    return SimpleNamespace(pred_instances=found)


@pytest.mark.parametrize('masks', [True, False], ids=['masks', 'boxes'])
def test_detections(masks):
    sample = instances([0.2, 0.7, 0.9], [0, 2, 1], masks=masks)
    found = FINDINGS['mmdet'](sample, ('a', 'b'), ('#000000', '#00ff00'), 0.3)
    assert found.rows == [('1', 'b', '0.900', '1, 2, 6, 6'), ('2', 'class 2', '0.700', '1, 2, 6, 6')]
    assert [name for _, name in found.areas] == ['1: b 0.90', '2: class 2 0.70']
    assert found.colors == {'1: b 0.90': '#00ff00'}
    for area, index in zip((area for area, _ in found.areas), (2, 1), strict=True):
        if masks:
            assert area.tolist() == sample.pred_instances.masks[index].tolist()
        else:
            assert area == (1, 2, 6, 6)


def test_detections_without_end_and_none():
    sample = instances([0.5] * (MAX_AREAS + 7), [0] * (MAX_AREAS + 7))
    found = FINDINGS['mmdet'](sample, ('a',), ('#000000',), 0.3)
    assert len(found.rows) == len(found.areas) == len({name for _, name in found.areas}) == MAX_AREAS
    assert found.left_out == 7
    assert FINDINGS['mmdet'](sample, ('a',), ('#000000',), 0.6).rows == []


def regions(labels, logits=None):
    labels = torch.tensor(labels)[None]
    logits = torch.ones(3, *labels.shape[1:]) if logits is None else logits
    return SimpleNamespace(pred_sem_seg=PixelData(data=labels), seg_logits=PixelData(data=logits))


def test_regions():
    found = FINDINGS['mmseg'](regions([[0, 0, 2, 2], [0, 0, 0, 1]]), ('background', 'a', 'b'), ('#1', '#2', '#3'), 0.3)
    assert found.rows == [('background', '62.50%'), ('b', '25.00%'), ('a', '12.50%')]
    assert found.colors == {'b 25.0%': '#3', 'a 12.5%': '#2'}
    assert [(area.tolist(), name) for area, name in found.areas] == [
        ([[False, False, True, True], [False, False, False, False]], 'b 25.0%'),
        ([[False, False, False, False], [False, False, False, True]], 'a 12.5%'),
    ]
    first = FINDINGS['mmseg'](regions([[0, 0]]), ('wall', 'floor'), ('#1', '#2'), 0.3)
    assert [name for _, name in first.areas] == ['wall 100.0%']  # the first class need not be the background


def test_probabilities():
    sample = SimpleNamespace(pred_score=torch.tensor([0.1, 0.5, 0.05, 0.2, 0.03, 0.12]))
    found = FINDINGS['mmpretrain'](sample, tuple('abcdef'), (), 0.3)
    assert found.rows == [('b', '0.5000'), ('d', '0.2000'), ('f', '0.1200'), ('a', '0.1000'), ('c', '0.0500')]
    assert not found.areas


def test_differences():
    compare = DIFFERENCES['mmdet']
    first = instances([0.5, 0.5, 0.9], [1, 0, 1])
    assert compare(first, instances([0.9, 0.5, 0.5], [1, 1, 0], masks=True))['scores'] == '0.0e+00'  # another order
    found = compare(first, instances([0.5, 0.25, 0.9], [1, 0, 1], shift=0.5))
    assert found == {'scores': '2.5e-01', 'boxes, pixels': '5.0e-01', 'pixels of masks': '0 of 192'}
    assert compare(first, instances([0.5], [1])) == {'number of detections, or their classes': '3 and 1 detections'}
    assert compare(instances([], []), instances([], [])) == {'detections': 'none in either form'}
    logits = torch.ones(3, 1, 2)
    logits[0, 0, 0] = 2.0
    found = DIFFERENCES['mmseg'](regions([[0, 1]], logits), regions([[0, 2]]))
    assert found == {'logits, relative': '5.0e-01', 'pixels of another class': '1 of 2'}
    scores = [SimpleNamespace(pred_score=torch.tensor(values)) for values in ([0.5, 0.5], [0.25, 0.75])]
    assert DIFFERENCES['mmpretrain'](*scores) == {'probabilities': '2.5e-01'}


def test_large_images_are_shown_smaller():
    image = np.full((30, 2 * MAX_SIDE + 1, 3), 7, np.uint8)
    mask = np.zeros(image.shape[:2], bool)
    mask[:, -3:] = True
    small, ((shown, name), (box, _)) = for_screen(image, [(mask, 'a'), ((0, 3, 2401, 30), 'b')])
    assert small.shape == (10, 801, 3)
    assert (small == 7).all()
    assert name == 'a'
    assert shown.shape == (10, 801)
    assert [shown[0, -2], shown[0, -1]] == pytest.approx([0, 0.6])
    assert box == (0, 1, 800, 10)
    same, _ = for_screen(image[:, :MAX_SIDE], [])
    assert same.shape == (30, MAX_SIDE, 3)
