"""The profile of a training step, and the yardstick that has nothing to merge."""

from __future__ import annotations

import pytest
import torch

from repnext_mm.lab.bench.spots_report import machine_line, operations_table
from repnext_mm.lab.bench.training_spots import find_step_spots
from repnext_mm.lab.bench.training_ways import EVAL_NORMS, merged_once, ways_to_train

TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}


@pytest.mark.parametrize('norm_eval', [False, True])
def test_three_ways(norm_eval):
    spots = find_step_spots(TINY, shape=(2, 3, 64, 64), norm_eval=norm_eval, rounds=2)
    assert list(spots) == ['online', 'branches', 'merged once']
    for step in spots.values():
        assert {'1x1 convolutions', 'depthwise convolutions', 'activation', 'optimizer'} <= step.by_kind_ms.keys()
        assert step.arithmetic_ms == pytest.approx(6e3 * step.gmacs / step.matrix_gflops)
        assert step.latency.n == 2
    assert ('norms' in spots['online'].by_kind_ms) == (not norm_eval)
    assert spots['branches'].gmacs > spots['online'].gmacs == pytest.approx(spots['merged once'].gmacs)
    table = operations_table(spots)
    assert '| **latency, median** |' in table
    assert 'memory bandwidth' not in table
    assert 'GFLOP/s' in machine_line(spots)


@pytest.mark.parametrize('norm_eval', [False, True])
def test_merged_once_is_the_same_network_with_other_parameters(norm_eval):
    images = torch.randn(2, 3, 64, 64)
    online = ways_to_train({'type': 'RepNeXt', 'arch': TINY}, like=images)['online' + EVAL_NORMS * norm_eval].run
    before = {key: value.clone() for key, value in online.state_dict().items()}
    way = merged_once(online, norm_eval=norm_eval)
    after = online.state_dict()
    assert online.training
    assert all(torch.equal(after[key], value) for key, value in before.items())
    for ours, theirs in zip(way.run(images), online(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert all(parameter.requires_grad for parameter in way.parameters)
    assert len(way.parameters) < len(list(online.parameters()))
