"""Nothing in a file is executed, our own training's files load without trust, and damage is one sentence."""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from repnext_mm.checkpoints import read_checkpoint, unsafe_globals, write_checkpoint


class Runs:
    """A pickle that calls a function when it is loaded."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture(params=['zip', 'legacy'])
def reader(request, monkeypatch):
    """Both formats of torch.save, each with a reader of its own."""
    if request.param == 'legacy':
        monkeypatch.setattr(torch, 'save', partial(torch.save, _use_new_zipfile_serialization=False))
    return request.param


ATTACKS = {
    'os.system': lambda path: Runs(os.system, f'touch {path}'),
    'builtins.eval': lambda path: Runs(eval, f'open({str(path)!r}, "w")'),
    'subprocess.Popen': lambda path: Runs(subprocess.Popen, ['touch', str(path)]),
    'statistics of another class': lambda path: Runs(getattr, np.ndarray, 'min'),
    'other attribute': lambda path: Runs(getattr, HistoryBuffer, '__init__'),
}


@pytest.mark.parametrize('name', ATTACKS)
def test_attacks_are_refused_and_not_executed(name, reader, tmp_path):
    trace = tmp_path / 'trace'
    torch.save({'model': {'w': torch.ones(1)}, 'extra': ATTACKS[name](trace)}, tmp_path / 'bad.pth')
    with pytest.raises(ValueError, match='could run code'):
        read_checkpoint(tmp_path / 'bad.pth')
    assert not trace.exists()


def test_the_offending_global_is_named(reader, tmp_path):
    torch.save({'model': {'w': torch.ones(1)}, 'extra': Runs(os.system, 'true')}, tmp_path / 'bad.pth')
    system = f'{os.system.__module__}.system'
    with pytest.raises(ValueError, match=f"asks for '{system}'"):
        read_checkpoint(tmp_path / 'bad.pth')
    assert unsafe_globals(tmp_path / 'bad.pth') == [system]


def test_a_bare_pickle_is_refused(reader, tmp_path):
    (tmp_path / 'bad.pth').write_bytes(pickle.dumps({'model': Runs(os.system, f'touch {tmp_path / "trace"}')}))
    with pytest.raises(ValueError, match='could run code|is a bare pickle'):
        read_checkpoint(tmp_path / 'bad.pth')
    assert not (tmp_path / 'trace').exists()


@pytest.fixture
def training_file(tmp_path):
    """What mmengine's training pickles beside tensors: log histories and numpy scalars."""
    history = HistoryBuffer()
    history.update(0.5)
    content = {
        'meta': {'epoch': 1, 'mmengine_version': '0.10.12', 'dataset_meta': {'classes': ('cat',)}},
        'state_dict': {'w': torch.ones(1)},
        'message_hub': {
            'log_scalars': {'train/loss': history},
            'runtime_info': {'eta': np.float64(3.5), 'n': np.int64(2)},
        },
        'optimizer': {'state': {0: {'step': torch.tensor(1.0)}}, 'param_groups': [{'lr': np.float32(0.1)}]},
        'param_schedulers': [{'milestones': Counter([8, 11]), 'last_step': 1}],
        'args': argparse.Namespace(lr=0.1),
    }
    torch.save(content, tmp_path / 'epoch_1.pth')
    return tmp_path / 'epoch_1.pth'


def test_our_own_training_files_need_no_trust(reader, training_file):
    content = read_checkpoint(training_file)
    history = content['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert history.current() == 0.5
    history.update(1.5)
    assert history.mean() == 1.0
    assert content['message_hub']['runtime_info'] == {'eta': 3.5, 'n': 2}
    assert content['param_schedulers'][0]['milestones'] == Counter({8: 1, 11: 1})
    assert content['args'].lr == 0.1
    assert unsafe_globals(training_file) == []


def test_a_log_history_works_in_a_process_that_has_logged_nothing(reader, tmp_path, monkeypatch):
    torch.save({'message_hub': {'loss': HistoryBuffer([3.0, 1.0], [1, 1])}}, tmp_path / 'run.pth')
    monkeypatch.setattr(HistoryBuffer, '_statistics_methods', {})
    history = read_checkpoint(tmp_path / 'run.pth')['message_hub']['loss']
    assert history.statistics('mean') == 2.0
    assert history.statistics('min') == 1.0


def test_every_prefix_of_a_file_is_one_sentence(reader, training_file, tmp_path):
    whole = training_file.read_bytes()
    cut = tmp_path / 'cut.pth'
    for length in range(0, len(whole) - 1, max(1, len(whole) // 60)):
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match='is not a weight file or is corrupt|was not read: it') as caught:
            read_checkpoint(cut)
        assert '\n' not in str(caught.value)


def test_files_of_other_kinds(tmp_path):
    image = tmp_path / 'image.pth'
    image.write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(100))
    with pytest.raises(ValueError, match='was not read: it is an image'):
        read_checkpoint(image)
    bad = tmp_path / 'weights.safetensors'
    bad.write_bytes(b'\x00' * 7)
    with pytest.raises(ValueError, match='is not a weight file'):
        read_checkpoint(bad)
    torch.save({'epoch': 3}, tmp_path / 'empty.pth')
    assert read_checkpoint(tmp_path / 'empty.pth') == {'epoch': 3}


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_what_we_write_is_plain(suffix, tmp_path):
    shared = torch.randn(3)
    state = {'a': shared, 'b': shared, 'n': torch.tensor(7)}
    path = write_checkpoint(tmp_path / f'out{suffix}', state, meta={'dataset_meta': {'classes': ['cat']}})
    loaded = read_checkpoint(path)['state_dict']
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    assert read_checkpoint(path)['meta'] == {'dataset_meta': {'classes': ['cat']}}
    if suffix == '.pth':
        assert torch.load(path, weights_only=True)['meta'] == {'dataset_meta': {'classes': ['cat']}}
    assert path.stat().st_mode & 0o077 == 0o666 & ~_umask() & 0o077


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path / 'out.pth', {'a': torch.ones(1)})
    before = path.read_bytes()

    def breaks(content, file):
        file.write(b'half')
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, 'save', breaks)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, {'a': torch.zeros(1)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = write_checkpoint(tmp_path / 'out.pth', {'a': torch.ones(1)})
    code = f"""
import os, signal, torch
from repnext_mm.checkpoints import write_checkpoint
save = torch.save
torch.save = lambda *a: (save(*a), os.kill(os.getpid(), signal.SIGKILL))
write_checkpoint({str(path)!r}, dict(a=torch.zeros(1)))
"""
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == -9
    assert read_checkpoint(path)['state_dict']['a'] == 1


def test_no_folder_to_write_to(tmp_path):
    with pytest.raises(FileNotFoundError, match='make it first'):
        write_checkpoint(tmp_path / 'nowhere' / 'out.pth', {'a': torch.ones(1)})
