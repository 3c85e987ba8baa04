"""Activation maps of one detector config on several backbones: same neck rule, same images, same question."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from repnext_mm.apis import load_config
from repnext_mm.data.scene import compose_scene
from repnext_mm.lab.draw import cam_sheet
from repnext_mm.lab.draw.cam import activation_map
from repnext_mm.lab.draw.cam_sheet import PAPER, detector, draw_cam_sheet, level_layer, load_detectors, with_backbone
from repnext_mm.lab.draw.subject import see
from tests.tools.running import ROOT

CONFIG = ROOT / 'configs/mask_rcnn_repnext_m0_digits.py'
SMALL = {'test_dataloader.dataset.pipeline.1.scale': (64, 64), 'test_dataloader.dataset.scenes': {'train': 1, 'val': 1}}
PEERS = ['repvit_m0_9', 'swiftformer_xs', 'fastvit_t8']


def digits(tmp_path, **more):
    return {**SMALL, 'data_root': str(tmp_path / 'data'), **more}


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'scene.jpg'
    cv2.imwrite(str(path), cv2.resize(compose_scene(split='val', index=0).image[..., ::-1], (64, 64)))
    return path


@pytest.fixture
def timm():
    return pytest.importorskip('timm')


def test_repnext_needs_no_timm(tmp_path):
    config = load_config(CONFIG, options=digits(tmp_path))
    changed = with_backbone(config, 'repnext_m5')
    assert changed.model.backbone == {'type': 'RepNeXt', 'arch': 'm5'}
    assert changed.model.neck.in_channels == [80, 160, 320, 640]
    assert config.model.neck.in_channels == [40, 80, 160, 320]  # the argument stays


@pytest.mark.parametrize('network', PEERS)
def test_widths_and_layers_are_those_of_the_network(network, tmp_path, timm):
    pytest.importorskip('mmpretrain')
    config = load_config(CONFIG, options=digits(tmp_path))
    subject = detector(config, network)
    subject.model.extract_feat(torch.zeros(1, 3, 64, 64))  # the neck fits
    levels = subject.backbone(torch.zeros(1, 3, 64, 64))
    assert [level.shape[1] for level in levels] == subject.config.model.neck.in_channels
    for level, expected in enumerate(levels):
        seen = []
        module = subject.backbone.get_submodule(level_layer(subject.backbone, level))
        handle = module.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
        subject.backbone(torch.zeros(1, 3, 64, 64))
        handle.remove()
        torch.testing.assert_close(seen[0], expected)


def test_networks_of_the_paper_are_there(timm):
    known = [name for name in PAPER if not name.startswith('repnext')]
    assert [name for name in known if not timm.is_model(name)] == []


def test_sheet_of_several_networks(tmp_path, image, timm):
    pytest.importorskip('pytorch_grad_cam')
    pytest.importorskip('mmpretrain')
    networks = ['repnext_m0', 'swiftformer_xs']
    subjects = load_detectors(CONFIG, networks, {}, options=digits(tmp_path), save_configs=tmp_path / 'configs')
    assert [subject.name for subject in subjects] == [f'{name}\nrandom weights' for name in networks]
    seen = [see(subject, image) for subject in subjects]
    assert torch.equal(seen[0].inputs, seen[1].inputs)
    maps = [
        activation_map(subject, one, layer=level_layer(subject.backbone, 2))
        for subject, one in zip(subjects, seen, strict=True)
    ]
    assert all(found.values.shape == (64, 64) for found in maps)
    assert np.abs(maps[0].values - maps[1].values).max() > 0.05
    path = draw_cam_sheet(subjects, [image, image], tmp_path / 'sheet.png', title='two', level=2)
    assert cv2.imread(str(path)).std() > 5
    written = Config.fromfile(str(tmp_path / 'configs/mask_rcnn_repnext_m0_digits_swiftformer_xs.py'))
    assert written.model.backbone.model_name == 'swiftformer_xs'


def test_weights_of_a_file_are_used_and_a_missed_object_costs_no_sheet(tmp_path, image):
    pytest.importorskip('pytorch_grad_cam')
    config = load_config(CONFIG, options=digits(tmp_path))
    random = detector(config, 'repnext_m0')
    torch.save({'state_dict': random.model.state_dict()}, tmp_path / 'weights.pth')
    (subject,) = load_detectors(
        CONFIG, ['repnext_m0'], {'repnext_m0': str(tmp_path / 'weights.pth')}, options=digits(tmp_path)
    )
    assert subject.name == 'repnext_m0'
    assert torch.equal(subject.model.neck.fpn_convs[0].conv.weight, random.model.neck.fpn_convs[0].conv.weight)
    subject.model.roi_head.test_cfg.score_thr = 1.0  # no box
    found = cam_sheet.explained(subject, see(subject, image), method='gradcam', level=3, label='digit 3')
    assert found == 'no box of digit 3'
    assert draw_cam_sheet([subject], [image], tmp_path / 'empty.png', title='none').is_file()


@pytest.mark.parametrize(
    ('networks', 'weights', 'message'),
    [
        (['repnext_m9'], {}, "network 'repnext_m9' is unknown: take one of repvit_m2_3"),
        (['vit_base_patch16_224'], {}, "network 'vit_base_patch16_224' has levels at strides"),
        (['repnext_m0'], {'repvit_m0_9': 'a.pth'}, 'weights are given for repvit_m0_9: choose from repnext_m0'),
    ],
    ids=['unknown', 'strides', 'stranger'],
)
def test_errors(networks, weights, message, tmp_path, timm):
    with pytest.raises(ValueError, match=message):
        load_detectors(CONFIG, networks, weights, options=digits(tmp_path))


def test_other_configs_are_refused(tmp_path, image):
    segmentor = ROOT / 'configs/semantic_fpn_repnext_m0_digits.py'
    with pytest.raises(ValueError, match="is not a detector's: give a Mask R-CNN config"):
        load_detectors(segmentor, ['repnext_m0'], {}, options={'data_root': str(tmp_path)})
    config = load_config(CONFIG, options=digits(tmp_path))
    del config.model.neck
    with pytest.raises(ValueError, match='has no model.neck.in_channels to fit to repnext_m0'):
        with_backbone(config, 'repnext_m0')
    subject = detector(load_config(CONFIG, options=digits(tmp_path)), 'repnext_m0')
    with pytest.raises(ValueError, match='level 4 does not exist: choose 0'):
        level_layer(subject.backbone, 4)
    with pytest.raises(ValueError, match='0 detectors and 1 images: give'):
        draw_cam_sheet([], [image], tmp_path / 'a.png', title='')
