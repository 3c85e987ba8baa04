"""What is looked at is left as it was: generators, and whatever modules and their classes hold."""

from __future__ import annotations

import random
from collections import deque
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from repnext_mm.reparam import fuse
from repnext_mm.reparam.fuse import count_norms
from repnext_mm.reparam.unchanged import generators_kept, state_kept
from tests.conftest import randomize


class Busy(nn.Module):
    """Writes wherever a ``forward`` can write."""

    log: ClassVar[list] = [['first']]
    total = 0

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer('count', torch.zeros(1))
        self.plain, self.array = torch.zeros(2), np.zeros(2)
        self.seen, self.queue, self.names = {'inner': [1]}, deque([1], maxlen=3), {'a'}
        self.meter = type('Meter', (), {'value': 0})()

    def forward(self, x):
        self.seen['inner'].append(x)
        self.queue.append(x)
        self.names.add('b')
        self.plain += 1
        self.array += 1
        self.count += 1
        self.scale.data.add_(1)
        self.meter.value += 1
        self.log[0].append(x)
        type(self).total += 1
        self.new = x
        return self.norm(self.conv(x))


def held(model: Busy) -> tuple:
    return (
        model.seen,
        list(model.queue),
        model.names,
        model.plain.tolist(),
        model.array.tolist(),
        model.count.item(),
        model.scale.item(),
        model.meter.value,
        Busy.log,
        Busy.total,
        sorted(vars(model)),
    )


def test_fusing_leaves_nothing_behind():
    model = randomize(Busy()).eval()
    lists = model.seen, model.seen['inner'], Busy.log[0]
    before = repr(held(model))
    fused, report = fuse(model)
    assert count_norms(fused) == 0
    assert report
    assert repr(held(model)) == before
    assert all(now is old for now, old in zip((model.seen, model.seen['inner'], Busy.log[0]), lists, strict=True))


def test_a_probe_leaves_nothing_behind():
    model = randomize(Busy()).eval()
    before = repr(held(model))
    fused, _ = fuse(model, probe=torch.randn(1, 3, 5, 5))
    assert count_norms(fused) == 0
    assert repr(held(model)) == before


def test_state_comes_back_after_an_error():
    model, before = Busy().eval(), repr(held(Busy()))

    def failing() -> None:
        with state_kept(model) as restore:
            model(torch.ones(1, 3, 4, 4))
            restore()
            assert repr(held(model)) == before
            model(torch.ones(1, 3, 4, 4))
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        failing()
    assert repr(held(model)) == before


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()  # noqa: NPY002 (the state that all share)


def seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)


class Drawing(nn.Sequential):
    def forward(self, x):
        drawn()
        return super().forward(x)


def test_generators_are_where_they_were():
    model = Drawing(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    seed()
    expected = drawn()
    seed()
    fuse(model, probe=torch.ones(1, 3, 4, 4))
    with generators_kept():
        drawn()
    assert drawn() == expected
