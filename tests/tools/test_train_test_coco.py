"""Mask R-CNN on the layout of COCO 2017: train, resume, test in both forms, augment, draw."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch

from tests.layouts import write_authors_checkpoint, write_coco
from tests.tools.running import ROOT, metrics, options, predictions, run_tool

CONFIG = ROOT / 'configs' / 'mask_rcnn_repnext_m4_coco.py'
SCALE = '(96,96)'


def overrides(root, **more):
    """Data root, iterations, scale, RoIs and the authors' file: nothing else differs from the published config."""
    return options(
        data_root=root / 'coco',
        train_cfg__max_epochs=1,
        train_dataloader__dataset__pipeline__2__scale=SCALE,
        val_dataloader__dataset__pipeline__1__scale=SCALE,
        test_dataloader__dataset__pipeline__1__scale=SCALE,
        tta_pipeline__1__transforms__0__0__scale=SCALE,
        tta_pipeline__1__transforms__0__1__scale='(64,64)',
        tta_pipeline__1__transforms__0__2__scale='(128,128)',
        model__train_cfg__rcnn__sampler__num=32,
        model__backbone__init_cfg__checkpoint=root / 'authors.pth',
        **more,
    )


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('foreign')
    write_coco(folder / 'coco')
    write_authors_checkpoint(folder / 'authors.pth')
    return folder


@pytest.fixture(scope='module')
def trained(root):
    output = run_tool(ROOT / 'tools/train.py', CONFIG, *overrides(root), cwd=root)
    work_dir = root / 'work_dirs' / CONFIG.stem
    return output, work_dir / 'epoch_1.pth'


@pytest.fixture(scope='module')
def confident(trained):
    """The trained checkpoint with a larger classifier: after two iterations no score would pass the threshold."""
    path = trained[1].with_name('confident.pth')
    content = torch.load(trained[1], weights_only=False)
    content['state_dict']['roi_head.bbox_head.fc_cls.weight'] *= 60
    torch.save(content, path)
    return path


@pytest.fixture(scope='module')
def tested(root, confident):
    def test(form, *flags):
        out = root / f'{form}.pkl'
        output = run_tool(ROOT / 'tools/test.py', CONFIG, confident, '--out', out, *flags, *overrides(root), cwd=root)
        return output, predictions(out)

    with ThreadPoolExecutor() as pool:
        fused, trained = pool.submit(test, 'fused'), pool.submit(test, 'trained', '--no-fuse')
        return {'fused': fused.result(), 'trained': trained.result()}


def test_training_learns_from_the_authors_file_and_says_what_it_dropped(trained):
    output, checkpoint = trained
    assert checkpoint.is_file()
    assert 'No GPU here: batch norms are not synchronized' in output
    assert output.count('No GPU here') == 1
    assert 'dropped 14 tensors of head from' in output
    assert 'Epoch(val) [1]' in output


def test_both_forms_give_the_same_metrics_and_predictions(tested):
    (fused, fused_predictions), (plain, plain_predictions) = tested['fused'], tested['trained']
    assert 'norms 128 -> 0' in fused
    assert '-> 0' not in plain
    for name in ('coco/bbox_mAP', 'coco/segm_mAP', 'coco/bbox_mAP_50'):
        assert metrics(fused, name) == pytest.approx(metrics(plain, name), abs=1e-3)
    assert len(fused_predictions) == len(plain_predictions) == 2
    for one, other in zip(fused_predictions, plain_predictions, strict=True):
        one, other = one['pred_instances'], other['pred_instances']
        assert len(one['scores']) == len(other['scores']) > 0
        assert len(one['masks']) == len(one['scores'])
        np.testing.assert_allclose(one['scores'], other['scores'], atol=1e-4)


def test_resume_goes_on_from_a_path_and_from_the_newest(root, trained):
    for resume in (['--resume'], ['--resume', trained[1]]):
        output = run_tool(
            ROOT / 'tools/train.py',
            CONFIG,
            '--work-dir',
            trained[1].parent,
            *resume,
            *overrides(root),
            'val_cfg=None',
            'val_dataloader=None',
            'val_evaluator=None',
            cwd=root,
        )
        assert 'resumed epoch: 1' in output


def test_augmented_test_merges_boxes_and_draws(root, confident):
    shown = root / 'shown'
    output = run_tool(
        ROOT / 'tools/test.py', CONFIG, confident, '--tta', '--show-dir', shown, *overrides(root), cwd=root
    )
    assert metrics(output, 'coco/bbox_mAP') >= -1
    assert 'segm_mAP' not in output.split('Evaluating bbox')[1]
    drawn = sorted(shown.rglob('*.jpg'))
    assert len(drawn) == 2
    assert all(cv2.imread(str(drawing)) is not None for drawing in drawn)
