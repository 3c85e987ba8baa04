"""Checkpoints appear whole, what is outdated goes last, and errors say what to do."""

from __future__ import annotations

import errno
import hashlib
import logging
import os

import pytest
import torch
from mmengine.fileio import BaseStorageBackend, FileClient, LocalBackend, register_backend
from mmengine.hooks import Hook
from mmengine.runner import checkpoint as mmengine_checkpoint

from repnext_mm import _files
from repnext_mm._files import draft_path
from repnext_mm.checkpoints import read_checkpoint
from repnext_mm.hooks.checkpoint import CheckpointNotSavedError
from repnext_mm.hooks.resume import is_whole
from tests.hooks.tiny_run import Killed, make_runner


def names(folder, pattern='*'):
    """Files, hidden ones included, that are neither logs nor folders."""
    found = {path.name for path in folder.glob(pattern) if path.is_file()}
    return {name for name in found if not name.endswith(('.py', '.log', '.json'))}


def recorded(folder):
    return os.path.basename((folder / 'last_checkpoint').read_text())


def half_written(error):
    def put(self, obj, filepath):
        with open(filepath, 'wb') as file:
            file.write(obj[: len(obj) // 2])
            file.flush()
            raise error

    return put


def raising(error):
    def fail(*arguments, **options):
        raise error

    return fail


FAULTS = {
    'torch.save': lambda patch, error: patch.setattr(mmengine_checkpoint.torch, 'save', raising(error)),
    'half written': lambda patch, error: patch.setattr(LocalBackend, 'put', half_written(error)),
    'fsync': lambda patch, error: patch.setattr(_files.os, 'fsync', raising(error)),
    'rename': lambda patch, error: patch.setattr(_files.os, 'replace', raising(error)),
}


@pytest.mark.parametrize('fault', FAULTS)
@pytest.mark.parametrize('error', [Killed(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))], ids=['kill', 'full'])
def test_a_save_that_fails_leaves_the_checkpoint_before_it(fault, error, tmp_path, monkeypatch):
    make_runner(tmp_path, length=1, max_keep_ckpts=1).train()
    before = (tmp_path / 'epoch_1.pth').read_bytes()
    runner = make_runner(tmp_path, length=2, max_keep_ckpts=1, resume=True)

    class Fault(Hook):
        def before_save_checkpoint(self, runner, checkpoint):
            FAULTS[fault](monkeypatch, error)

    runner.register_hook(Fault())
    with pytest.raises((Killed, CheckpointNotSavedError)) as raised:
        runner.train()
    monkeypatch.undo()
    if not isinstance(error, Killed):
        assert "epoch_2.pth was not saved to '" in str(raised.value)
        assert f'({os.strerror(errno.ENOSPC)}; ' in str(raised.value)
        assert "go on with --resume from 'epoch_1.pth', which is whole" in str(raised.value)
    assert names(tmp_path) == {'epoch_1.pth', 'last_checkpoint'}
    assert (tmp_path / 'epoch_1.pth').read_bytes() == before
    assert recorded(tmp_path) == 'epoch_1.pth'


def test_the_outdated_checkpoint_goes_when_the_new_one_is_recorded(tmp_path, monkeypatch):
    removed = []
    remove = LocalBackend.remove

    def watched(self, path):
        assert is_whole(tmp_path / recorded(tmp_path))
        removed.append((os.path.basename(path), recorded(tmp_path)))
        remove(self, path)

    monkeypatch.setattr(LocalBackend, 'remove', watched)
    make_runner(tmp_path, length=3, max_keep_ckpts=1).train()
    assert removed == [('epoch_1.pth', 'epoch_2.pth'), ('epoch_2.pth', 'epoch_3.pth')]
    assert names(tmp_path) == {'epoch_3.pth', 'last_checkpoint'}


def test_a_kill_before_the_removal_is_made_up_for(tmp_path, monkeypatch):
    monkeypatch.setattr(LocalBackend, 'remove', raising(Killed()))
    with pytest.raises(Killed):
        make_runner(tmp_path, length=3, max_keep_ckpts=1).train()
    monkeypatch.undo()
    assert names(tmp_path) == {'epoch_1.pth', 'epoch_2.pth', 'last_checkpoint'}
    draft_path(tmp_path / 'epoch_3.pth').write_bytes(b'torn')
    with pytest.raises(Killed):
        make_runner(tmp_path, length=3, max_keep_ckpts=1, resume=True, kill_at=4).train()
    assert names(tmp_path) == {'epoch_2.pth', 'last_checkpoint'}


class TestBest:
    def test_the_previous_one_goes_last(self, tmp_path, monkeypatch):
        removed = []
        remove = LocalBackend.remove

        def watched(self, path):
            name = os.path.basename(path)
            if name.startswith('best_'):
                best = read_checkpoint(tmp_path / recorded(tmp_path))['message_hub']['runtime_info']['best_ckpt']
                assert is_whole(best)  # the new one, as the checkpoint to resume from says
                removed.append((name, os.path.basename(best)))
            remove(self, path)

        monkeypatch.setattr(LocalBackend, 'remove', watched)
        make_runner(tmp_path, length=3, scores=[1.0, 3.0, 2.0], max_keep_ckpts=1).train()
        assert removed == [('best_score_epoch_1.pth', 'best_score_epoch_2.pth')]
        assert names(tmp_path) == {'best_score_epoch_2.pth', 'epoch_3.pth', 'last_checkpoint'}

    def test_a_kill_while_it_is_written_leaves_the_previous_one(self, tmp_path, monkeypatch):
        put = LocalBackend.put

        def torn(self, obj, path):
            (half_written(Killed()) if 'best_score_epoch_2' in path else put)(self, obj, path)

        monkeypatch.setattr(LocalBackend, 'put', torn)
        with pytest.raises(Killed):
            make_runner(tmp_path, length=2, scores=[1.0, 3.0]).train()
        monkeypatch.undo()
        assert names(tmp_path, '*best*') == {'best_score_epoch_1.pth'}
        # The validation that the kill took is made up for: the best one is what it would have been.
        make_runner(tmp_path, length=2, scores=[3.0], resume=True).train()
        assert names(tmp_path, '*best*') == {'best_score_epoch_2.pth'}

    def test_a_kill_before_the_removal_is_made_up_for(self, tmp_path, monkeypatch):
        monkeypatch.setattr(LocalBackend, 'remove', raising(Killed()))
        with pytest.raises(Killed):
            make_runner(tmp_path, length=2, scores=[1.0, 3.0]).train()
        monkeypatch.undo()
        assert names(tmp_path, '*best*') == {'best_score_epoch_1.pth', 'best_score_epoch_2.pth'}
        make_runner(tmp_path, length=2, scores=[], resume=True).train()  # no score: nothing is validated again
        assert names(tmp_path, '*best*') == {'best_score_epoch_2.pth'}

    @pytest.mark.parametrize('by_epoch', [True, False], ids=['epochs', 'iterations'])
    def test_validation_follows_on_resume_only_where_it_was_due(self, by_epoch, tmp_path):
        with pytest.raises(Killed):
            make_runner(tmp_path, by_epoch=by_epoch, scores=[1.0, 2.0], kill_at=5).train()
        ran = make_runner(tmp_path, by_epoch=by_epoch, scores=[2.5], resume=True)
        ran.train()  # one score for the last of three; the second was recorded
        assert ran.message_hub.get_info('best_score') == 2.5


def test_published_keys(tmp_path):
    make_runner(tmp_path, length=1, published_keys=['state_dict', 'meta']).train()
    (published,) = tmp_path.glob('epoch_1-*.pth')
    assert published.stem.endswith('-' + hashlib.sha256(published.read_bytes()).hexdigest()[:8])
    assert set(read_checkpoint(published)) == {'state_dict', 'meta'}


def test_a_checkpoint_names_no_file_elsewhere(tmp_path):
    options = dict(max_keep_ckpts=1, filename_tmpl='{}.pth')
    make_runner(tmp_path / 'run', length=1, scores=[1.0], **options).train()
    precious, path = tmp_path / 'precious.pth', tmp_path / 'run/1.pth'
    precious.write_text('mine')
    content = torch.load(path, weights_only=False)
    content['message_hub']['runtime_info'].update(
        best_ckpt=str(precious), keep_ckpt_ids=['../precious', 1], outdated_best_ckpts=['best_/../../precious.pth']
    )
    torch.save(content, path)
    runner = make_runner(tmp_path / 'run', length=2, scores=[2.0], resume=True, **options)
    runner.train()
    assert precious.read_text() == 'mine'
    assert runner.message_hub.get_info('best_ckpt') == str(tmp_path / 'run/best_score_2.pth')
    assert names(tmp_path / 'run') == {'2.pth', 'best_score_2.pth', 'best_score_1.pth', 'last_checkpoint'}


def test_checkpoints_are_read_by_the_safe_reader_and_hold_nothing_new(tmp_path):
    make_runner(tmp_path, length=1, scores=[1.0]).train()
    content = read_checkpoint(tmp_path / 'epoch_1.pth')
    assert set(content) == {'meta', 'state_dict', 'message_hub', 'optimizer', 'param_schedulers'}


def test_a_store_is_left_to_its_client(tmp_path, monkeypatch, caplog):
    class Store(BaseStorageBackend):
        def get(self, filepath): ...
        def get_text(self, filepath): ...
        def exists(self, path):
            return False

        def join_path(self, *parts):
            return '/'.join(parts)

        def put(self, obj, path):
            saved.append((path, len(obj)))

    saved = []
    register_backend('teststore', Store, force=True, prefixes='teststore')
    FileClient.register_backend('teststore', Store, force=True, prefixes='teststore')
    runner = make_runner(tmp_path, length=1, out_dir='teststore://bucket')
    with caplog.at_level(logging.WARNING):
        runner.train()
    assert [path for path, size in saved if size > 1000] == [f'teststore://bucket/{tmp_path.name}/epoch_1.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == f'teststore://bucket/{tmp_path.name}/epoch_1.pth'
