"""Two processes on the CPU: gloo, no SyncBN, the same weights in both, tests that gather."""

import socket

import pytest

from tests.layouts import write_ade20k, write_authors_checkpoint
from tests.tools.running import ROOT, metrics, options, run_tool

CONFIG = ROOT / 'configs' / 'semantic_fpn_repnext_m0_ade20k.py'


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def overrides(root):
    return options(
        data_root=root / 'ade',
        train_cfg__max_iters=2,
        train_cfg__val_interval=2,
        train_dataloader__dataset__pipeline__2__scale='(96,96)',
        train_dataloader__dataset__pipeline__3__crop_size='(64,64)',
        train_dataloader__num_workers=0,
        val_dataloader__num_workers=0,
        test_dataloader__num_workers=0,
        val_dataloader__dataset__pipeline__1__scale='(100,100)',
        test_dataloader__dataset__pipeline__1__scale='(100,100)',
        model__data_preprocessor__size='(64,64)',
        model__backbone__init_cfg__checkpoint=root / 'authors.pth',
    )


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('foreign')
    write_ade20k(folder / 'ade')
    write_authors_checkpoint(folder / 'authors.pth', arch='m0')
    return folder


def test_two_processes_train_and_test(root):
    output = run_tool(
        ROOT / 'tools/dist_train.sh', CONFIG, 2, '--auto-scale-lr', *overrides(root), cwd=root, PORT=free_port()
    )
    assert 'GPU number: 2' in output
    assert 'Distributed launcher: pytorch' in output
    assert 'Scaling the original LR by 0.5' in output  # 2 x 4 images instead of 16
    checkpoint = root / 'work_dirs' / CONFIG.stem / 'iter_2.pth'
    two = ROOT / 'tools/dist_test.sh', CONFIG, checkpoint, 2
    together = run_tool(*two, *overrides(root), cwd=root, PORT=free_port())
    alone = run_tool(ROOT / 'tools/test.py', CONFIG, checkpoint, *overrides(root), cwd=root)
    assert metrics(together, 'mIoU') == pytest.approx(metrics(alone, 'mIoU'), abs=0.01)
