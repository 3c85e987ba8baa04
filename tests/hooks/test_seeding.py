"""A run that is stopped and resumed ends at the weights of one that is not, to the last bit."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from repnext_mm.hooks import SeededSampler
from tests.hooks.tiny_run import Killed, Noise, differing_state, make_runner

FORKS = pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning')


@FORKS
@pytest.mark.parametrize(('by_epoch', 'workers'), [(True, 0), (False, 2)], ids=['epochs', 'iterations, workers'])
def test_killed_twice_and_resumed(by_epoch, workers, tmp_path):
    options = dict(by_epoch=by_epoch, workers=workers, scores=[1.0] * 9)
    make_runner(tmp_path / 'whole', **options).train()
    for kill_at in (3, 5):
        with pytest.raises(Killed):
            make_runner(tmp_path / 'cut', kill_at=kill_at, resume=True, **options).train()
    make_runner(tmp_path / 'cut', resume=True, **options).train()
    last = 'epoch_3.pth' if by_epoch else 'iter_6.pth'
    assert differing_state(tmp_path / 'whole' / last, tmp_path / 'cut' / last) == []


def test_without_seeding_they_differ(tmp_path):
    """The test above can fail."""
    make_runner(tmp_path / 'whole', seeded=False).train()
    with pytest.raises(Killed):
        make_runner(tmp_path / 'cut', seeded=False, kill_at=3).train()
    make_runner(tmp_path / 'cut', seeded=False, resume=True).train()
    assert differing_state(tmp_path / 'whole/epoch_3.pth', tmp_path / 'cut/epoch_3.pth')


@FORKS
def test_neither_workers_nor_validation_change_the_weights(tmp_path):
    make_runner(tmp_path / 'plain').train()
    make_runner(tmp_path / 'busy', workers=2, scores=[1.0] * 3).train()
    assert differing_state(tmp_path / 'plain/epoch_3.pth', tmp_path / 'busy/epoch_3.pth') == []


def test_the_seed_counts(tmp_path):
    make_runner(tmp_path / 'one', length=1).train()
    make_runner(tmp_path / 'two', length=1, seed=1).train()
    assert differing_state(tmp_path / 'one/epoch_1.pth', tmp_path / 'two/epoch_1.pth')


def loader(*, workers=0, seed=0):
    dataset = Noise()
    sampler = SeededSampler(dataset, sampler=dict(type='DefaultSampler', shuffle=False), seed=seed)
    return DataLoader(dataset, batch_size=3, sampler=sampler, num_workers=workers)


def batches(loader):
    return torch.cat([batch['inputs'] for batch in loader])


@FORKS
def test_samples_do_not_depend_on_workers():
    alone = loader()
    assert torch.equal(batches(alone), batches(loader(workers=2)))
    index = next(iter(alone.sampler))
    (one,) = alone.dataset.__getitems__([index])
    (same,) = pickle.loads(pickle.dumps(alone.dataset)).__getitems__([index])
    assert torch.equal(one['inputs'], same['inputs'])  # as a worker that is spawned gets it


def test_epochs_and_seeds_differ_and_repeat():
    first = loader()
    one = batches(first)
    assert torch.equal(one, batches(first))
    first.sampler.set_epoch(1)
    assert first.sampler.sampler.epoch == 1
    assert not torch.equal(one, batches(first))
    assert not torch.equal(one, batches(loader(seed=1)))


def test_a_sample_that_comes_twice_is_augmented_twice():
    dataset = Noise()
    sampler = SeededSampler(dataset, sampler=dict(type='InfiniteSampler', shuffle=False), seed=0)
    stream = iter(sampler)
    first, second = ([next(stream) for _ in range(8)] for _ in range(2))
    assert list(map(int, first)) == list(map(int, second))
    for one, other in zip(dataset.__getitems__(first), dataset.__getitems__(second), strict=True):
        assert not torch.equal(one['inputs'], other['inputs'])


def test_skipping_keeps_places():
    def make():
        return SeededSampler(Noise(), sampler=dict(type='InfiniteSampler', shuffle=True), seed=0)

    whole, skipped = make(), make()
    if not hasattr(whole, 'skip'):
        pytest.skip('this mmengine resumes by drawing what it skips')
    skipped.skip(5)
    stream = iter(whole)
    for _ in range(5):
        next(stream)
    index, same = next(stream), next(iter(skipped))
    assert (int(index), index.place) == (int(same), same.place)


def test_an_index_keeps_its_seed_on_the_way_to_a_worker():
    index = next(iter(loader().sampler))
    again = pickle.loads(pickle.dumps(index))
    assert (again, again.place) == (index, index.place)
    assert isinstance(again, int)


def test_a_sampler_without_skip_has_none():
    assert not hasattr(loader().sampler, 'skip')
