"""A training of a second, random in every way that trainings are: order, augmentation, dropped paths, labels."""

from __future__ import annotations

import itertools
import random
from typing import ClassVar

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.utils.data import Dataset

from repnext_mm import RepNeXt
from repnext_mm.hooks import AtomicCheckpointHook

ARCH = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}
NUMBERS = itertools.count()


class Killed(BaseException):
    """What no handler of errors catches: the nearest thing to a kill that a test survives."""


class Noise(Dataset):
    """Eight images, augmented with all three generators."""

    metainfo: ClassVar = {'classes': ('noise',)}

    def __getitem__(self, index):
        image = torch.full((3, 32, 32), float(index)) + torch.randn(3, 32, 32)
        return {'inputs': image * random.random() + np.random.rand()}  # noqa: NPY002

    def __len__(self):
        return 8


class Net(BaseModel):
    """A RepNeXt that drops paths, and a head whose width makes the checkpoint large."""

    def __init__(self, width=2):
        super().__init__()
        self.backbone = RepNeXt(ARCH, drop_path_rate=0.5)
        self.head = nn.Linear(64, width)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        scores = self.head(self.backbone(torch.stack(list(inputs)))[-1].mean((2, 3)))
        if mode == 'loss':
            return {'loss': (scores - random.random() - np.random.rand()).square().mean()}  # noqa: NPY002
        return list(scores)


class Score(BaseMetric):
    """Gives the scores that it is told to give, one an evaluation."""

    def __init__(self, scores):
        super().__init__()
        self.scores = iter(scores)

    def process(self, data_batch, data_samples):
        torch.rand(1)  # validation draws too
        self.results.append(0)

    def compute_metrics(self, results):
        return {'score': next(self.scores)}


class KillAt(Hook):
    """Raises at an iteration, counted over the whole training."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            raise Killed


class TinyRunner(Runner):
    """Ends its workers itself: what collects garbage waits five seconds for each."""

    def train(self):
        try:
            return super().train()
        finally:
            if isinstance(self._train_loop, BaseLoop) and self.train_dataloader._iterator is not None:
                self.train_dataloader._iterator._shutdown_workers()


def make_runner(
    work_dir,
    *,
    by_epoch=True,
    length=3,
    workers=0,
    kill_at=None,
    resume=False,
    scores=None,
    seed=0,
    width=2,
    seeded=True,
    hooks=(),
    **checkpoint,
):
    """A runner of ``length`` epochs of two iterations, or of twice as many iterations."""
    torch.manual_seed(0)
    sampler = dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True)
    hooks = [*hooks, *([KillAt(kill_at)] if kill_at is not None else [])]
    validation = {}
    if scores is not None:
        validation = dict(
            val_dataloader=dict(dataset=Noise(), sampler=dict(type='DefaultSampler', shuffle=False), batch_size=4),
            val_evaluator=[Score(scores)],
            val_cfg={},
        )
        checkpoint = {'save_best': 'score', 'rule': 'greater', **checkpoint}
    loop = dict(by_epoch=True, max_epochs=length) if by_epoch else dict(by_epoch=False, max_iters=2 * length)
    return TinyRunner(
        Net(width),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=Noise(),
            batch_size=4,
            num_workers=workers,
            persistent_workers=workers > 0,
            sampler=dict(type='SeededSampler', sampler=sampler) if seeded else sampler,
        ),
        train_cfg=dict(**loop, val_interval=1 if by_epoch else 2),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2)),
        param_scheduler=dict(type='CosineAnnealingLR', by_epoch=by_epoch, T_max=6),
        default_hooks=dict(
            checkpoint=AtomicCheckpointHook(**{'interval': 1 if by_epoch else 2, 'by_epoch': by_epoch, **checkpoint}),
            logger=dict(type='LoggerHook', interval=1),
        ),
        custom_hooks=[*([dict(type='SeedStepsHook')] if seeded else []), *hooks],
        randomness=dict(seed=seed),
        resume=resume,
        experiment_name=f'tiny-{next(NUMBERS)}',
        **validation,
    )


def state_of(path):
    """All that training goes on with, flat: weights and the optimizer's state."""
    content = torch.load(path, weights_only=False)
    optimizer = content['optimizer']['state']
    moments = {f'{index}.{key}': value for index, part in optimizer.items() for key, value in part.items()}
    return {**content['state_dict'], **moments}


def differing_state(one, other):
    """What is not equal to the last bit."""
    first, second = state_of(one), state_of(other)
    assert first.keys() == second.keys()
    assert len(first) > 100
    return [key for key, value in first.items() if not torch.equal(value, second[key])]
