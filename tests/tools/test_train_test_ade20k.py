"""Semantic FPN on the layout of ADE20K: train, test in both forms, augment, draw."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.layouts import write_ade20k, write_authors_checkpoint
from tests.tools.running import ROOT, metrics, options, predictions, run_tool

CONFIG = ROOT / 'configs' / 'semantic_fpn_repnext_m4_ade20k.py'


def overrides(root):
    """Data root, iterations, image scale and the authors' file: nothing else differs from the published config."""
    scales = {f'tta_pipeline__1__transforms__0__{index}__scale': '(96,96)' for index in range(6)}
    return options(
        data_root=root / 'ade',
        train_cfg__max_iters=2,
        train_dataloader__dataset__pipeline__2__scale='(128,128)',
        train_dataloader__dataset__pipeline__3__crop_size='(96,96)',
        model__data_preprocessor__size='(96,96)',
        val_dataloader__dataset__pipeline__1__scale='(100,100)',
        test_dataloader__dataset__pipeline__1__scale='(100,100)',
        model__backbone__init_cfg__checkpoint=root / 'authors.pth',
        **scales,
    )


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('foreign')
    write_ade20k(folder / 'ade')
    write_authors_checkpoint(folder / 'authors.pth')
    return folder


@pytest.fixture(scope='module')
def trained(root):
    output = run_tool(ROOT / 'tools/train.py', CONFIG, '--work-dir', 'run', *overrides(root), cwd=root)
    return output, root / 'run' / 'iter_2.pth'


def test_training_writes_a_checkpoint_below_the_given_folder(trained):
    output, checkpoint = trained
    assert checkpoint.is_file()
    assert 'authors.pth' in output
    assert output.count('No GPU here') == 1


def test_both_forms_give_the_same_metrics_and_maps(root, trained):
    def test(form, *flags):
        out = root / f'{form}.pkl'
        output = run_tool(ROOT / 'tools/test.py', CONFIG, trained[1], '--out', out, *flags, *overrides(root), cwd=root)
        return metrics(output, 'mIoU'), predictions(out)

    with ThreadPoolExecutor() as pool:
        runs = pool.submit(test, 'fused'), pool.submit(test, 'trained', '--no-fuse')
        found = dict(zip(('fused', 'trained'), (run.result() for run in runs), strict=True))
    assert found['fused'][0] == pytest.approx(found['trained'][0], abs=0.01)
    assert len(found['fused'][1]) == 2
    for one, other in zip(found['fused'][1], found['trained'][1], strict=True):
        one, other = (np.asarray(part['pred_sem_seg']['data']) for part in (one, other))
        assert one.shape == (1, 128, 128)  # the original size, not the resized one
        assert (one == other).mean() > 0.999


def test_augmented_test_draws(root, trained):
    output = run_tool(
        ROOT / 'tools/test.py', CONFIG, trained[1], '--tta', '--show-dir', 'shown', *overrides(root), cwd=root
    )
    assert metrics(output, 'mIoU') >= 0
    assert len(list((root / 'shown').rglob('*.png'))) == 2


@pytest.mark.slow
def test_a_file_of_the_old_version_tests_alike_and_a_cut_one_is_refused(root, trained):
    """mmseg 0.30 wrote the same keys beside other metadata; a file that lacks a tensor stops before the test."""
    written = torch.load(trained[1], weights_only=False)
    meta = {'mmseg_version': '0.30.0+', 'CLASSES': ('wall', 'building'), 'PALETTE': [[120, 120, 120], [180, 120, 120]]}
    torch.save({'meta': meta, 'state_dict': written['state_dict']}, root / 'old.pth')
    new, old = (
        run_tool(ROOT / 'tools/test.py', CONFIG, path, *overrides(root), cwd=root) for path in (trained[1], 'old.pth')
    )
    assert metrics(old, 'mIoU') == metrics(new, 'mIoU')
    count = len(written['state_dict'])
    assert f'loaded {count}/{count} tensors from old.pth' in old
    del written['state_dict']['decode_head.conv_seg.bias']
    torch.save({'meta': meta, 'state_dict': written['state_dict']}, root / 'cut.pth')
    output = run_tool(ROOT / 'tools/test.py', CONFIG, 'cut.pth', *overrides(root), cwd=root, expect=1)
    assert '1 missing (decode_head.conv_seg.bias)' in output
