"""The choice of a form follows the measurements, and is one that fuse takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repnext_mm import RepNeXt
from repnext_mm import timing as module
from repnext_mm.reparam import fuse, relative_error
from repnext_mm.timing import Latency, fastest_form, stage_latencies
from tests.conftest import randomize

TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}


@pytest.fixture
def backbone() -> nn.Module:
    return randomize(RepNeXt(TINY)).eval()


def test_every_stage_is_measured_on_its_own_input(backbone):
    latencies = stage_latencies(backbone, torch.randn(1, 3, 64, 64), rounds=2)
    assert list(latencies) == ['stages.0', 'stages.1', 'stages.2', 'stages.3']
    assert all(set(stage) == {'default', 'half', 'three_quarters', 'dense'} for stage in latencies.values())
    assert all(latency.n == 2 and latency.median_ms > 0 for stage in latencies.values() for latency in stage.values())


def test_the_choice_can_be_fused(backbone):
    form = fastest_form(backbone, torch.randn(1, 3, 64, 64), rounds=2)
    fused, report = fuse(backbone, form=form)
    assert report.norms_after == 0
    assert max(relative_error(fused, backbone, torch.randn(1, 3, 65, 97))) < 1e-4


@pytest.mark.parametrize(
    ('times', 'expected'),
    [
        ({'default': 1.0, 'dense': 0.5}, {'stages.0': 'dense', 'stages.1': 'dense'}),
        ({'default': 1.0, 'dense': 0.99}, {'': 'default'}),
    ],
    ids=['clear', 'tie'],
)
def test_the_fastest_wins_and_ties_stay_with_the_first(times, expected, backbone, monkeypatch):
    found = {form: Latency(ms, ms, ms, 1) for form, ms in times.items()}
    monkeypatch.setattr(module, 'stage_latencies', lambda *_, **__: {'stages.0': found, 'stages.1': found})
    assert fastest_form(backbone, torch.randn(1, 3, 64, 64), forms=tuple(times)) == expected


def test_a_model_without_stages_is_measured_as_a_whole():
    model = nn.Sequential(nn.Conv2d(3, 4, 1)).eval()
    assert list(stage_latencies(model, torch.randn(1, 3, 8, 8), forms=['default'], rounds=1)) == ['']
