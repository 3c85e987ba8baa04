"""`--resume` with damaged entries: a run goes on, or is refused in one sentence that names the file and the entry."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from repnext_mm.apis.weights import reading_safely
from repnext_mm.checkpoints import WeightsError
from repnext_mm.hooks import StrictLoadHook
from tests.hooks.tiny_run import make_runner

VALUES = {
    'None': None, 'text': 'text', 'list': [1, 2], 'dict': {}, 'dict of a list': {'a': [1]}, 'negative': -1, 'half': 0.5,
    'NaN': float('nan'), 'True': True, 'tensor': torch.zeros(3, 2), 'complex': torch.tensor(1j), 'bytes': b'b',
}  # fmt: skip
SHORT = 'one entry fewer'


def run(folder, **options):
    hooks = [StrictLoadHook(), EMAHook(momentum=0.1)]
    runner = make_runner(folder, scores=[1.0, 2.0, 3.0, 4.0], hooks=hooks, max_keep_ckpts=3, **options)
    with reading_safely():
        runner.train()
    return runner


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    run(folder, length=1)
    with reading_safely():
        return torch.load(folder / 'epoch_1.pth', weights_only=False)


def places(content, path=(), depth=4):
    """Every entry of a checkpoint down to a depth; of many alike, the first two."""
    items = list(content.items() if isinstance(content, dict) else enumerate(content))
    for key, value in items if len(path) < 2 else items[:2]:
        yield (*path, key)
        if isinstance(value, dict | list | tuple) and len(path) + 1 < depth:
            yield from places(value, (*path, key), depth)


def damaged(content, path, value):
    """A copy with another value at a place; ``SHORT`` removes the place."""
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        if isinstance(inner[key], tuple):
            inner[key] = list(inner[key])
        inner = inner[key]
    if isinstance(inner, dict | list) and value is SHORT:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return content


ENTRIES = ('meta', 'message_hub', 'optimizer', 'param_schedulers', 'ema_state_dict')


@pytest.mark.parametrize('entry', ENTRIES)
def test_every_damage_is_survived_or_told(entry, checkpoint, tmp_path):
    """Not a list of cases: every value at every place."""
    told = tried = 0
    for path in [place for place in places(checkpoint) if place[0] == entry]:
        for value in [*VALUES.values(), SHORT]:
            tried += 1
            file = tmp_path / f'{tried}.pth'
            torch.save(damaged(checkpoint, path, value), file)
            try:
                check(file, tmp_path)
            except WeightsError as error:
                told += 1
                assert str(file) in str(error)
                assert entry in str(error)
                assert len(str(error)) < 700
                assert '\n' not in str(error)
            file.unlink()
    print(entry, tried, told)
    assert 0.2 * tried < told < tried


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(Runner, '_log_env', lambda *_: None)


def check(file, folder):
    runner = make_runner(
        folder / 'run', length=2, scores=[3.0, 4.0], hooks=[StrictLoadHook(), EMAHook(momentum=0.1)], max_keep_ckpts=3
    )
    runner._resume, runner._load_from = True, str(file)
    with reading_safely():
        runner.train()
