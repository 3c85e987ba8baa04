"""Class activation maps of the three tasks, where the package grad-cam is installed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from repnext_mm.apis import load_config
from repnext_mm.data.scene import compose_scene
from repnext_mm.lab.draw.cam import METHODS, activation_map, draw_activation_maps
from repnext_mm.lab.draw.subject import Subject, load_subject, see
from tests.conftest import randomize
from tests.tools.running import ROOT

pytest.importorskip('pytorch_grad_cam')
CONFIGS = {
    'mmpretrain': 'repnext_m0_digits_cls.py',
    'mmseg': 'semantic_fpn_repnext_m0_digits.py',
    'mmdet': 'mask_rcnn_repnext_m0_digits.py',
}


@pytest.fixture(scope='module')
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp('images') / 'scene.jpg'
    cv2.imwrite(str(path), compose_scene(split='val', index=0).image[..., ::-1])
    return path


def random_subject(scope, *, root):
    """A model with random weights, in eval mode; a detector with sure scores."""
    options = {'data_root': str(root)}
    if scope != 'mmpretrain':
        options['test_dataloader.dataset.scenes'] = {'train': 1, 'val': 1}
    config = load_config(ROOT / 'configs' / CONFIGS[scope], options=options)
    init_default_scope(scope)
    torch.manual_seed(0)
    model = randomize(MODELS.build(config.model)).eval()
    if scope == 'mmdet':
        model.roi_head.bbox_head.fc_cls.weight.data *= 100
    return Subject(name=scope, model=model, config=config)


@pytest.mark.parametrize(
    ('scope', 'what'),
    [('mmpretrain', 'probability '), ('mmseg', '% of the pixels'), ('mmdet', ' boxes, best ')],
    ids=['classification', 'segmentation', 'detection'],
)
def test_maps(scope, what, image, tmp_path):
    subject = random_subject(scope, root=tmp_path / 'data')
    seen = see(subject, image)
    maps = [activation_map(subject, seen, method=method, layer='stages.1') for method in ('gradcam', 'layercam')]
    for found in maps:
        assert found.values.shape == seen.image.shape[:2]
        assert (found.values.min(), found.values.max()) == pytest.approx((0, 1), abs=1e-5)
        assert found.label.startswith('digit ') or found.label == 'background'
        assert what in found.what
    assert np.abs(maps[0].values - maps[1].values).max() > 0.05
    assert all(parameter.grad is None for parameter in subject.model.parameters())
    assert not any(module._forward_hooks for module in subject.backbone.modules())
    path = draw_activation_maps(seen.image, maps, tmp_path / 'cam.png', title='maps')
    assert cv2.imread(str(path)).std() > 5


def test_fused_maps_are_the_same(image, tmp_path):
    from repnext_mm.hooks import FuseBackboneHook

    subject = random_subject('mmpretrain', root=tmp_path / 'data')
    seen = see(subject, image)
    fused = Subject(name='fused', model=FuseBackboneHook().fuse_backbone(subject.model)[0], config=subject.config)
    maps = [activation_map(model, seen, layer='stages.2', label='digit 3').values for model in (subject, fused)]
    assert np.abs(maps[0] - maps[1]).max() < 1e-3


def test_every_method_exists():
    import pytorch_grad_cam

    assert all(hasattr(pytorch_grad_cam, name) for name in METHODS.values())


def test_errors(image, tmp_path):
    bare = load_subject()
    with pytest.raises(ValueError, match='need a config of mmpretrain, mmdet or mmseg, and a checkpoint'):
        activation_map(bare, see(bare, image))
    subject = random_subject('mmpretrain', root=tmp_path / 'data')
    seen = see(subject, image)
    for options, message in (
        ({'method': 'cam'}, "method 'cam' is unknown: choose from gradcam"),
        ({'layer': 'stages.7'}, "the backbone has no layer 'stages.7': try"),
        ({'label': 'cat'}, "class 'cat' is unknown: choose from digit 0"),
    ):
        with pytest.raises(ValueError, match=message):
            activation_map(subject, seen, **options)
