"""`--resume` with damaged entries: a run goes on, or is refused in one sentence that names the file and the entry."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from repnext_mm.apis.safe_loading import reading_safely
from repnext_mm.checkpoints import WeightsError
from repnext_mm.hooks import StrictLoadHook
from repnext_mm.hooks.resume_state import check_resumable
from tests.hooks.tiny_run import make_runner

GONE = 'GONE'
MANY = 40
VALUES = [
    GONE,
    None,
    'text',
    [1, 2],
    [],
    {},
    {'a': [1]},
    -1,
    0.5,
    float('nan'),
    True,
    torch.zeros(3, 2),
    torch.tensor(1j),
    b'b',
    2**70,
]
ENTRIES = ('meta', 'message_hub', 'optimizer', 'param_schedulers', 'ema_state_dict')


@pytest.fixture(autouse=True, scope='module')
def _quick():
    """What mmengine logs of the machine takes longer than these trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, '_log_env', lambda *_: None)
        yield


def started(folder, *, length, resume_from=None):
    runner = make_runner(
        folder, length=length, scores=[1.0, 2.0, 3.0], hooks=[StrictLoadHook(), EMAHook(momentum=0.1)], max_keep_ckpts=3
    )
    runner._resume, runner._load_from = resume_from is not None, resume_from
    with reading_safely():
        runner.train()
    return runner


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return started(tmp_path_factory.mktemp('run') / 'run', length=1)


@pytest.fixture(scope='module')
def checkpoint(run):
    return torch.load(f'{run.work_dir}/epoch_1.pth', weights_only=False)


def places(content, path=(), depth=4):
    """Every place in a checkpoint down to a depth; of many alike, the first two."""
    items = list(content.items() if isinstance(content, dict) else enumerate(content))
    for key, value in items if len(items) < MANY else items[:2]:
        yield (*path, key)
        if isinstance(value, dict | list | tuple) and len(path) + 1 < depth:
            yield from places(value, (*path, key), depth)


def damaged(content, path, value):
    """The same content with another value at a place; only what holds the place is copied."""
    key, *rest = path
    content = list(content) if isinstance(content, tuple) else copy.copy(content)
    if rest:
        content[key] = damaged(content[key], rest, value)
    elif value is GONE:
        del content[key]
    else:
        content[key] = value
    return content


def damages(checkpoint, entry):
    for path in places({entry: checkpoint[entry]}):
        for value in VALUES:
            yield path, value, damaged(checkpoint, path, value)


def told(content, run, path):
    """Whether a damage is refused, in a sentence."""
    try:
        check_resumable(content, run, run.model, source='some.pth')
    except WeightsError as error:
        message = str(error)
        assert message.startswith('some.pth ')
        assert path[0] in message
        assert 'load_from=FILE' in message
        assert len(message) < 700
        assert message.isprintable()
        return True
    return False


def test_what_is_whole_passes(checkpoint, run):
    check_resumable(checkpoint, run, run.model, source='some.pth')


@pytest.mark.parametrize('entry', ENTRIES)
def test_every_damage_is_passed_or_told(entry, checkpoint, run):
    """Not a list of cases: every value at every place."""
    outcomes = [told(content, run, path) for path, _, content in damages(checkpoint, entry)]
    assert any(outcomes)
    assert not all(outcomes)


@pytest.mark.parametrize(
    ('path', 'values'),
    [
        (('meta',), [None, [1], {}]),
        (('meta', 'epoch'), [None, 'text', -1, GONE]),
        (('meta', 'seed'), ['text', 2**70]),
        (('message_hub',), [None, [1], {}]),
        (('message_hub', 'log_scalars'), [None, [1]]),
        (('message_hub', 'runtime_info', 'best_score'), ['text']),
        (('message_hub', 'runtime_info', 'keep_ckpt_ids'), [5]),
        (('optimizer',), [None, [1], {}]),
        (('optimizer', 'state'), [[1], None]),
        (('optimizer', 'param_groups'), [{}, []]),
        (('optimizer', 'param_groups', 0, 'params'), [[0], GONE]),
        (('optimizer', 'param_groups', 0, 'betas'), [0.9, GONE]),
        (('optimizer', 'state', 0, 'exp_avg'), [GONE, None, torch.zeros(1)]),
        (('optimizer', 'state', 0, 'step'), ['a']),
        (('param_schedulers',), [None, {}, []]),
        (('param_schedulers', 0), [None, {}]),
        (('param_schedulers', 0, 'step'), [1]),
        (('param_schedulers', 0, 'base_values'), [[1.0, 2.0], 1.0]),
        (('ema_state_dict',), [None, [1]]),
        (('ema_state_dict', 'module.head.bias'), [None, torch.zeros(7)]),
    ],
    ids=lambda value: '.'.join(map(str, value)) if isinstance(value, tuple) else '',
)
def test_these_are_told(path, values, checkpoint, run):
    for value in values:
        assert told(damaged(checkpoint, path, value), run, path), (path, value)


@pytest.mark.slow
@pytest.mark.parametrize('entry', ENTRIES)
def test_what_is_passed_trains_on(entry, checkpoint, run, tmp_path):
    """The checks know what mmengine, torch and our hooks do with every entry."""
    went_on = 0
    for path, _, content in damages(checkpoint, entry):
        if not told(content, run, path):
            torch.save(content, tmp_path / 'damaged.pth')
            assert started(tmp_path / 'run', length=2, resume_from=str(tmp_path / 'damaged.pth')).iter in (2, 4), path
            went_on += 1
    assert went_on
