"""Disks that are full, files that grow too large, folders that take no file: one sentence, and nothing half-written."""

from __future__ import annotations

import resource
import shutil
import subprocess

import pytest

from repnext_mm.hooks.checkpoint import CheckpointNotSavedError
from repnext_mm.hooks.resume import is_whole
from tests.hooks.tiny_run import make_runner


def names(folder):
    return {path.name for path in folder.iterdir() if path.is_file() and ('pth' in path.name or 'last' in path.name)}


def test_a_limit_of_the_system_on_files(tmp_path):
    runner = make_runner(tmp_path, length=1, width=30_000)  # 8 MB, and twice that for the optimizer
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, hard))
    try:
        with pytest.raises(CheckpointNotSavedError, match=r'epoch_1\.pth was not saved to .* make room'):
            runner.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == set()


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of six megabytes."""
    place = tmp_path / 'small'
    place.mkdir()
    if not shutil.which('mount') or subprocess.run(mount('-t', 'tmpfs', '-o', 'size=6m', 'tmpfs', place)).returncode:
        pytest.skip('only root mounts file systems')
    yield place
    subprocess.run(['umount', str(place)], check=True)


def mount(*words):
    return ['mount', *map(str, words)]


def test_a_disk_that_is_full(small_disk, tmp_path):
    options = dict(out_dir=str(small_disk), width=4500, max_keep_ckpts=1)  # 4 MB a checkpoint
    with pytest.raises(CheckpointNotSavedError, match=r"No space left on device; \d MB are free.*'epoch_1\.pth'"):
        make_runner(tmp_path / 'run', **options).train()
    assert names(small_disk / 'run') == {'epoch_1.pth'}
    assert is_whole(small_disk / 'run/epoch_1.pth')
    subprocess.run(mount('-o', 'remount,size=20m', small_disk), check=True)
    make_runner(tmp_path / 'run', resume=True, **options).train()
    assert names(small_disk / 'run') == {'epoch_3.pth'}


def test_a_folder_that_takes_no_file_is_seen_before_training(tmp_path):
    (tmp_path / 'blocked').write_text('')
    runner = make_runner(tmp_path / 'run', out_dir=str(tmp_path / 'blocked'), kill_at=0)
    with pytest.raises(CheckpointNotSavedError, match=r'was not saved to .*blocked/run.* give write access'):
        runner.train()
