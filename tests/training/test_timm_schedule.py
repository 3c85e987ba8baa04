"""The rates of the recipes are those in the authors' logs (facts C1, C2)."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from repnext_mm.training import TimmCosineLR
from tests.configs import CONFIGS


def rates(name, epochs=None):
    """The rate of each epoch of a config."""
    config = Config.fromfile(CONFIGS / f'{name}.py')
    end = epochs or config.train_cfg.max_epochs
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=config.optim_wrapper.optimizer.lr)
    scheduler = PARAM_SCHEDULERS.build(
        {**config.param_scheduler, 'end': end}, default_args={'optimizer': OptimWrapper(optimizer), 'epoch_length': 5}
    )
    found = []
    for _ in range(end):
        found.append(optimizer.param_groups[0]['lr'])
        assert scheduler.get_last_value() == [found[-1]]
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ('name', 'second', 'peak', 'last'),
    [('repnext_m1_imagenet', 8.008e-4, 4e-3, 1.0437e-5), ('repnext_m1_distill_imagenet', 4.008e-4, 2e-3, 1.0218e-5)],
)
def test_repvit_recipe(name, second, peak, last):
    found = rates(name)
    assert found[:2] == [1e-6, 1e-6]  # the authors' loop steps one epoch late
    assert found[2] == pytest.approx(second, rel=1e-6)
    assert max(found) == pytest.approx(peak, rel=1e-3)
    assert found.index(max(found)) == 6
    assert found[-1] == pytest.approx(last, abs=1e-9)
    assert len(found) == 300


@pytest.mark.parametrize('name', ['repnext_m1_starnet_imagenet', 'repnext_m1_starnet_distill_imagenet'])
def test_starnet_recipe(name):
    found = rates(name)
    assert len(found) == 310
    assert found[0] == 1e-5
    assert found[1] == pytest.approx(1e-5 + (3e-3 - 1e-5) / 5)
    assert max(found) == pytest.approx(3e-3, rel=1e-3)
    assert found.index(max(found)) == 5
    assert found[300:] == [1e-6] * 10
    assert found[299] > 1e-6


@pytest.mark.parametrize('epochs', [100, 400])
def test_another_length_is_one_option(epochs):
    found = rates('repnext_m0_cifar100', epochs)
    assert len(found) == epochs
    assert max(found) == pytest.approx(4e-3, rel=1e-2)
    assert found[-1] < 1.5e-5


def test_goes_on_where_it_stopped():
    def make():
        optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
        return TimmCosineLR(OptimWrapper(optimizer), end=20, warmup_epochs=3, warmup_lr=1e-4, lag=1)

    whole, first, second = make(), make(), make()
    for _ in range(7):
        whole.step()
        first.step()
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        assert second.get_last_value() == whole.get_last_value()
        whole.step()
        second.step()


@pytest.mark.parametrize('options', [dict(cooldown_epochs=20), dict(lag=-1), dict(warmup_epochs=-2)])
def test_refuses_what_makes_no_schedule(options):
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match='training of 20 epochs'):
        TimmCosineLR(OptimWrapper(optimizer), end=20, **options)


def test_the_runner_takes_it_for_a_scheduler_when_it_resumes():
    optimizer = OptimWrapper(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))
    scheduler = TimmCosineLR(optimizer, end=4, lr_min=0.01)
    assert isinstance(scheduler, _ParamScheduler)
    scheduler.step()
    again = TimmCosineLR(optimizer, end=4, lr_min=0.01)
    again.load_state_dict(scheduler.state_dict())
    assert again.get_last_value() == scheduler.get_last_value() != [0.1]
