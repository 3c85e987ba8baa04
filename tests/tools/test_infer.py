"""Annotated pictures through the ecosystem's inferencers, whatever the checkpoint knows of its classes."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from repnext_mm.apis import annotate_image
from repnext_mm.datasets.scene import compose_scene
from tests.tools.running import ROOT, run_tool

DETECTION = ROOT / 'configs' / 'mask_rcnn_repnext_m0_coco.py'
SEGMENTATION = ROOT / 'configs' / 'semantic_fpn_repnext_m0_ade20k.py'
SMALL = {'test_dataloader.dataset.pipeline.1.scale': (96, 96)}


@pytest.fixture(scope='module')
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp('pictures') / 'scene.jpg'
    cv2.imwrite(str(path), compose_scene(split='val', index=0).image[..., ::-1])
    return path


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Random weights of both models: a detector whose scores are high, a segmentor that names two classes."""
    folder, found = tmp_path_factory.mktemp('weights'), {}
    for path, meta in ((DETECTION, {}), (SEGMENTATION, {})):
        config = Config.fromfile(path)
        init_default_scope(config.default_scope)
        torch.manual_seed(0)
        state = MODELS.build(config.model).state_dict()
        if 'roi_head.bbox_head.fc_cls.weight' in state:
            state['roi_head.bbox_head.fc_cls.weight'] *= 100
        found[path] = folder / f'{path.stem}.pth'
        torch.save({'state_dict': state, 'meta': meta}, found[path])
    return found


@pytest.mark.parametrize('config', [DETECTION, SEGMENTATION], ids=['detection', 'segmentation'])
def test_picture_is_annotated(config, image, checkpoints, tmp_path, capsys):
    written = annotate_image(
        image, config, str(checkpoints[config]), out_dir=tmp_path, device='cpu', score_threshold=0.05, options=SMALL
    )
    assert written == tmp_path / 'vis' / 'scene.jpg'
    drawn, original = cv2.imread(str(written)), cv2.imread(str(image))
    assert drawn.shape == original.shape
    assert np.abs(drawn.astype(int) - original).max() > 50


@pytest.mark.parametrize(
    ('config', 'count', 'last'), [(DETECTION, 80, 'toothbrush'), (SEGMENTATION, 150, 'flag')], ids=['coco', 'ade20k']
)
@pytest.mark.parametrize('named', [False, True], ids=['config', 'checkpoint'])
def test_class_names(config, count, last, named, image, checkpoints, tmp_path, monkeypatch):
    import repnext_mm.apis.infer as infer

    content = torch.load(checkpoints[config])
    if named:
        content['meta']['dataset_meta'] = {'classes': ('a', 'b'), 'palette': [[1, 2, 3], [4, 5, 6]]}
    path = tmp_path / 'weights.pth'
    torch.save(content, path)
    loaded = infer._inferencer(infer.load_config(config, options=SMALL), str(path), device='cpu')
    classes = loaded.model.dataset_meta['classes']
    assert (classes == ('a', 'b')) if named else (len(classes) == count and classes[-1] == last)


def test_the_tool_says_where_the_picture_is(image, checkpoints, tmp_path):
    scale = ['--cfg-options', 'test_dataloader.dataset.pipeline.1.scale=(96,96)']
    output = run_tool(ROOT / 'tools/infer.py', image, SEGMENTATION, checkpoints[SEGMENTATION], *scale, cwd=tmp_path)
    assert output.rstrip().endswith('wrote work_dirs/infer/vis/scene.jpg')
    assert 'norms 53 -> 0' in output
    assert (tmp_path / 'work_dirs/infer/vis/scene.jpg').is_file()


@pytest.mark.parametrize(
    ('changed', 'words'),
    [
        (dict(image='absent.jpg'), r"image 'absent\.jpg' does not exist"),
        (dict(config_path='absent.py'), r"config 'absent\.py' does not exist"),
        (dict(checkpoint='absent.pth'), r"checkpoint 'absent\.pth' does not exist"),
        (dict(score_threshold=3.0), r'score_threshold=3\.0 is not a probability'),
        (dict(device='cuda:99'), r"device 'cuda:99' cannot be used here"),
        (dict(device='gpu'), r"device 'gpu' cannot be used here"),
        (dict(options={'default_scope': 'mmpretrain'}), r"default_scope='mmpretrain' has no annotated pictures"),
    ],
)
def test_what_cannot_be_done_is_said(changed, words, image, checkpoints):
    given = dict(image=image, config_path=DETECTION, checkpoint=str(checkpoints[DETECTION])) | changed
    with pytest.raises((FileNotFoundError, ValueError), match=words):
        annotate_image(**given)


def test_a_file_that_is_no_picture(checkpoints, tmp_path):
    path = Path(tmp_path / 'text.jpg')
    path.write_text('no picture')
    with pytest.raises(ValueError, match=r"image '.*text\.jpg' cannot be read"):
        annotate_image(path, DETECTION, str(checkpoints[DETECTION]))
