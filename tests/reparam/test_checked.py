"""Verified fusing of any module and of every backbone in a model; the source comes back unchanged."""

from __future__ import annotations

import copy
import logging
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from repnext_mm.errors import UserError
from repnext_mm.models.merged_conv import ConvNorm
from repnext_mm.reparam import Fusible, FusionError, fuse_checked, relative_error
from repnext_mm.reparam.fuse import count_norms
from repnext_mm.reparam.verify import randomize


def layers(channels: int = 3) -> nn.Sequential:
    parts = [nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)]
    return randomize(nn.Sequential(*parts))


class Net(nn.Module):
    """A backbone and a head that has a norm of its own."""

    def __init__(self, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = layers() if backbone is None else backbone
        self.head = nn.Sequential(nn.Conv2d(5, 2, 1), nn.BatchNorm2d(2))


class Wrong(Fusible):
    """A module whose fused form is another function."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.conv, self.error = nn.Conv2d(3, 4, 1), error

    def forward(self, x):
        return self.conv(x)

    def fused(self, form):
        conv = copy.deepcopy(self.conv)
        with torch.no_grad():
            conv.weight.mul_(1 + self.error)
            conv.bias.mul_(1 + self.error)
        return conv


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_module_is_fused_as_a_whole_and_stays_as_it_was(dtype, training):
    parts = [ConvNorm(3, 4, 3, norm_cfg={'type': 'BN'}), nn.Dropout(0.5), ConvNorm(4, 5, 1, norm_cfg={'type': 'BN'})]
    model = randomize(nn.Sequential(*parts)).to(dtype).train(training)
    model[0].eval()
    state, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    fused, report = fuse_checked(model)
    assert count_norms(fused) == 0
    assert (report.norms_before, report.norms_after) == (2, 0)
    assert not any(module.training for module in fused.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert flags == [module.training for module in model.modules()]
    bound = {torch.float64: 1e-14, torch.float32: 1e-5, torch.bfloat16: 16 * torch.finfo(torch.bfloat16).eps}[dtype]
    assert len(report.errors) == 1
    assert max(report.errors) <= bound
    if dtype == torch.float64:
        assert max(relative_error(fused, copy.deepcopy(model).eval(), torch.randn(2, 3, 9, 7, dtype=dtype))) <= bound


def test_backbones_alone_are_fused_wherever_they_stand():
    model = nn.ModuleDict({'student': Net(), 'teacher': nn.Sequential(Net())}).train()
    fused, report = fuse_checked(model)
    for net, source in ((fused['student'], model['student']), (fused['teacher'][0], model['teacher'][0])):
        assert count_norms(net.backbone) == 0
        assert net.head is source.head
        assert source.backbone.training
    assert (report.norms_before, report.norms_after, len(report.errors)) == (4, 0, 2)
    assert {name.partition('backbone.')[0] for name in report.modules} == {'student.', 'teacher.0.'}


def test_data_parallel_wrappers_are_left_out():
    net = Net()
    fused, report = fuse_checked(nn.DataParallel(net))
    assert isinstance(fused, Net)
    assert fused.head is net.head
    assert report.norms_after == 0


def test_a_probe_of_the_user():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    assert not fuse_checked(model)[1]  # no image
    fused, report = fuse_checked(randomize(model).double(), probe=torch.randn(5, 3).double())
    assert count_norms(fused) == 0
    assert max(report.errors) < 1e-14


@pytest.mark.parametrize(('error', 'tolerance'), [(1e-3, 1e-4), (math.nan, 1e30)], ids=['too far', 'nan'])
def test_what_is_not_equal_is_refused(error, tolerance):
    model = Net(Wrong(error)).train()
    with pytest.raises(FusionError, match='the fused Wrong differs from the trained one by') as raised:
        fuse_checked(model, tolerance=tolerance)
    assert isinstance(raised.value, RuntimeError | UserError)
    assert all(module.training for module in model.modules())


def test_a_tolerance_that_is_larger_than_the_error():
    assert fuse_checked(Wrong(1e-3), tolerance=2e-3)[1].errors[0] == pytest.approx(1e-3, rel=1e-2)


def test_the_form_may_be_chosen_for_each_module():
    seen = []

    def choose(module):
        seen.append((module, module.training))
        return 'keep_norms'

    model = nn.ModuleDict({'a': Net(), 'b': Net()}).train()
    _, report = fuse_checked(model, form=choose)
    assert seen == [(model['a'].backbone, False), (model['b'].backbone, False)]
    assert report.form == 'keep_norms'


def test_random_generators_are_where_they_were():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            random.random()
            np.random.rand()  # noqa: NPY002 - the state in question
            return self.conv(x + 0 * torch.rand_like(x))

    model = nn.Sequential(Noisy(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
    expected = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
    fuse_checked(model)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected  # noqa: NPY002


@pytest.mark.parametrize(
    ('model', 'reason'),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 7)), 'takes no image to verify it with'),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), 'has nothing to fuse'),
        (type('FullyShardedDataParallel', (nn.Sequential,), {})(nn.Conv2d(3, 4, 3)), r'is sharded \(FSDP\)'),
    ],
    ids=['another input', 'nothing', 'in pieces'],
)
def test_what_is_not_fused_comes_back_with_the_reason(model, reason, caplog):
    logging.getLogger('repnext_mm').addHandler(caplog.handler)
    try:
        result, report = fuse_checked(model)
    finally:
        logging.getLogger('repnext_mm').removeHandler(caplog.handler)
    assert result is model
    assert not report
    assert report.parameters_before == report.parameters_after > 0
    (text,) = {record.getMessage() for record in caplog.records if record.levelno == logging.WARNING}
    assert reason.replace('\\', '') in text


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'form': 'fast'}, 'unknown form'),
        ({'form': 3}, 'must be one of default'),
        ({'tolerance': 0}, 'positive'),
        ({'tolerance': math.nan}, 'positive'),
        ({'tolerance': True}, 'positive'),
    ],
    ids=str,
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        fuse_checked(Net(), **options)
