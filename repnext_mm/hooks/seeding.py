"""Randomness that depends on the seed and the place in training only: a resumed run draws what it would have drawn."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, sync_random_seed
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, HOOKS
from mmengine.runner import Runner
from torch.utils.data import Sampler

_STEP, _SAMPLE = 0, 1  # so that a step and a sample of the same number draw differently


@HOOKS.register_module()
class SeedStepsHook(Hook):
    """Seed Python's, NumPy's and torch's generators before every training step.

    The seed is made from the run's seed, the process's rank and the iteration, so that dropout, dropped paths, mixed
    batches and sampled boxes need no stored state: what happened before (validation, a restart) has no say.
    Data is loaded elsewhere: see ``SeededSampler``.
    """

    priority = 'VERY_HIGH'  # other hooks may draw before a step

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the step that follows."""
        torch.manual_seed(_seed_python_and_numpy(runner.seed, _STEP, get_rank(), runner.iter))


@DATA_SAMPLERS.register_module()
class SeededSampler(Sampler):
    """Any sampler; and each sample is loaded with generators that are seeded by its place.

    The seed is made from the run's seed, the rank, the epoch and the place of the sample in that epoch. So
    augmentation does not depend on the number of workers, on how long they live, or on restarts, and epochs differ
    (mmengine's workers, where they do not persist, repeat the same stream in every epoch).

    Args:
        dataset: given by the runner.
        sampler: the config of the sampler that chooses, such as ``dict(type='DefaultSampler', shuffle=True)``.
        seed: given by the runner.
    """

    def __init__(self, dataset: Any, *, sampler: Mapping[str, Any], seed: int | None = None) -> None:
        self.seed = sync_random_seed() if seed is None else seed
        self.sampler: Any = DATA_SAMPLERS.build(dict(sampler), default_args=dict(dataset=dataset, seed=self.seed))
        self.dataset = dataset
        self.epoch = 0
        self._start = 0
        if hasattr(self.sampler, 'skip'):  # mmengine asks whether a sampler has it
            self.skip = self._skip
        # torch's loader prefers it to indexing, in the main process and in workers of either start method
        dataset.__getitems__ = _SeededItems(dataset)

    def __iter__(self) -> Iterator[int]:
        rank = get_rank()
        for place, index in enumerate(self.sampler, self._start):
            yield _SeededIndex.of(index, (self.seed, _SAMPLE, rank, self.epoch, place))

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Called by ``DistSamplerSeedHook``."""
        self.epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def _skip(self, num_samples: int) -> None:
        self._start = num_samples
        self.sampler.skip(num_samples)


class _SeededIndex(int):
    """An index that says what its sample is seeded with; batch samplers and queues take it for an integer."""

    place: tuple[int, ...]

    @classmethod
    def of(cls, index: int, place: tuple[int, ...]) -> _SeededIndex:
        made = cls(index)
        made.place = place
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return _SeededIndex.of, (int(self), self.place)


class _SeededItems:
    """What loads the samples of a batch."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __call__(self, indices: Sequence[int]) -> list[Any]:
        return [self._load(index) for index in indices]

    def _load(self, index: int) -> Any:
        if not isinstance(index, _SeededIndex):
            return self._dataset[index]
        # Not torch.manual_seed: it queues a call, with a stack trace, for a GPU that a worker never uses.
        torch.default_generator.manual_seed(_seed_python_and_numpy(*index.place))
        return self._dataset[int(index)]


def _seed_python_and_numpy(*place: int) -> int:
    """Seed both from integers, well mixed; returns a seed for torch."""
    words = np.random.SeedSequence(place).generate_state(10)
    random.seed(words[:4].tobytes())
    np.random.seed(words[4:8])  # noqa: NPY002 - transforms draw from it
    return int(words[8]) << 31 | int(words[9])
