"""A model in both forms on one picture, against the frameworks' own inference; and what the page says of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from repnext_mm.apis import load_config
from repnext_mm.data.scene import compose_scene
from repnext_mm.data.scene_files import CLASSES
from repnext_mm.lab.demo.app_choices import Pair
from repnext_mm.lab.demo.app_forms import FUSED, TRAIN, Outcome, load_forms, run_forms
from repnext_mm.lab.demo.app_page import latency_rows, note
from repnext_mm.lab.demo.app_results import MAX_AREAS, Findings
from repnext_mm.timing import Latency
from tests.conftest import randomise
from tests.tools.running import ROOT

CONFIGS = {
    'mmseg': ROOT / 'configs/semantic_fpn_repnext_m0_digits.py',
    'mmdet': ROOT / 'configs/mask_rcnn_repnext_m0_digits.py',
    'mmpretrain': ROOT / 'configs/repnext_m0_digits_cls.py',
}
NAMES = {'mmseg': ('background', *CLASSES), 'mmdet': CLASSES, 'mmpretrain': CLASSES}


@pytest.fixture(scope='module')
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp('pictures') / 'scene.jpg'
    cv2.imwrite(str(path), compose_scene(split='val', index=0).image[..., ::-1])
    return path


def write_weights(scope, path):
    """Random weights, as training leaves them; a detector is sure of itself."""
    config = load_config(CONFIGS[scope])
    init_default_scope(scope)
    torch.manual_seed(0)
    model = randomise(MODELS.build(config.model))
    if scope == 'mmdet':
        model.roi_head.bbox_head.fc_cls.weight.data *= 100
    palette = [[10 * index, 0, 255 - index] for index in range(len(NAMES[scope]))]
    meta = {'dataset_meta': {'classes': NAMES[scope], 'palette': palette}}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, path)
    return path


@pytest.mark.parametrize('scope', CONFIGS)
def test_both_forms_of_a_model(scope, picture, tmp_path):
    forms = load_forms(Pair(CONFIGS[scope], write_weights(scope, tmp_path / 'weights.pth')))
    assert forms.classes == NAMES[scope]
    assert forms.colours[1] == '#0a00fe'
    assert (forms.report.norms_before, forms.report.norms_after) == (53, 0)
    outcome = run_forms(forms, str(picture), score_threshold=0.05, rounds=3)
    assert outcome.image.tolist() == cv2.imread(str(picture))[..., ::-1].tolist()
    assert outcome.findings.rows == independent_rows(scope, forms, picture)
    assert all(area.shape == outcome.image.shape[:2] for area, _ in outcome.findings.areas)
    numbers = {name: float(text.split()[0]) for name, text in outcome.differences.items()}
    assert len(numbers) == {'mmdet': 4, 'mmseg': 3, 'mmpretrain': 2}[scope]
    assert all(value < (20 if 'pixels of' in name else 2e-2) for name, value in numbers.items())
    assert 0 < numbers['features of the backbone, relative'] < 1e-4
    for part in ('backbone', 'whole network'):
        assert set(outcome.latency[part]) == {TRAIN, FUSED}
        assert all(value.n == 3 and value.median_ms > 0 for value in outcome.latency[part].values())


def independent_rows(scope, forms, picture):
    """The same rows, from the framework's own inference."""
    model, names = forms.fused, forms.classes
    model.cfg = forms.subject.config
    if scope == 'mmseg':
        from mmseg.apis import inference_model

        labels, counts = inference_model(model, str(picture)).pred_sem_seg.data.unique(return_counts=True)
        order = counts.argsort(descending=True, stable=True).tolist()
        return [(names[labels[place]], f'{counts[place].item() / counts.sum().item():.2%}') for place in order]
    if scope == 'mmpretrain':
        from mmpretrain import ImageClassificationInferencer

        model._config = forms.subject.config
        scores = ImageClassificationInferencer(model, classes=names)(str(picture))[0]['pred_scores']
        return [(names[label], f'{scores[label]:.4f}') for label in np.argsort(-scores)[:5]]
    from mmdet.apis import inference_detector

    found = inference_detector(model, str(picture)).pred_instances
    found = found[found.scores >= 0.05]
    return [
        (str(number), names[label], f'{score:.3f}', ', '.join(str(round(value)) for value in box))
        for number, (label, score, box) in enumerate(
            zip(found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist(), strict=True), start=1
        )
    ][:MAX_AREAS]


def test_a_network_with_nothing_to_fuse(picture, tmp_path):
    torch.manual_seed(0)
    config = load_config(CONFIGS['mmpretrain'])
    config.model.backbone.deploy = True
    config.model.head.deploy = True
    config.test_dataloader.dataset.type = 'Nowhere'  # then classes have no names
    config.dump(str(tmp_path / 'net.py'))
    init_default_scope('mmpretrain')
    torch.save({'state_dict': MODELS.build(config.model).state_dict()}, tmp_path / 'net.pth')
    forms = load_forms(Pair(tmp_path / 'net.py', tmp_path / 'net.pth'))
    outcome = run_forms(forms, str(picture), rounds=3)
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
    assert '4 further results are not marked in the picture.' in text
