"""Training steps: what is compared, what memory means, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repnext_mm.lab.bench import training
from repnext_mm.lab.bench.training import SHAPES, measure_training_step

TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}
QUICK = dict(rounds=2, warmup_rounds=1, warmup_s=0)
WAYS = ['train form', 'branches', 'train form, norms in eval mode', 'branches, norms in eval mode']


@pytest.mark.parametrize('memory_format', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_four_ways_in_one_run(dtype, memory_format):
    rounds = []
    found = measure_training_step(
        TINY, shape=(2, 3, 64, 64), dtype=dtype, memory_format=memory_format, progress=lambda: rounds.append(1), **QUICK
    )
    assert list(found.steps) == WAYS
    assert (found.dtype, found.memory_format, found.shape) == (dtype, memory_format, (2, 3, 64, 64))
    assert found.memory_kind == 'storages saved for backward'
    assert len(rounds) == 2
    for step in found.steps.values():
        assert step.time.n == 2
        assert step.time.median_ms > 0
        assert max(step.loss_error, step.gradient_error) < 1e-5
    assert found.steps['train form'].gradient_error > 0  # the two are different computations
    assert found.branches_of(WAYS[0]) is found.branches_of(WAYS[1]) is found.steps[WAYS[1]]
    assert found.branches_of(WAYS[2]) is found.branches_of(WAYS[3]) is found.steps[WAYS[3]]


def test_memory_of_a_step():
    found = measure_training_step(TINY, shape=(4, 3, 128, 128), **QUICK)
    online, branches, online_eval, branches_eval = (step.memory_mib for step in found.steps.values())
    # a norm that is folded needs no stored input; the branches' inner results (1x7 before 7x1) are not stored
    assert online < branches
    assert online_eval < online
    assert online_eval < branches_eval


def test_memory_counts_storages_once_and_no_parameters():
    layer = nn.Conv2d(3, 8, 1, bias=False)
    images = torch.zeros(2, 3, 16, 16)

    def twice(x):
        y = layer(x)
        return [y * y, y[:, :4].exp()]  # y is saved twice, once as itself and once in a product

    way = training.Way(twice, layer, [layer.weight], {layer.weight.untyped_storage().data_ptr()}, None)
    saved = training.saved_mib(lambda: None, way, images, lambda: torch.autocast('cpu', enabled=False))
    image, product, exponent = 2 * 3 * 256, 2 * 8 * 256, 2 * 4 * 256
    # the image, y, the exponential, and both levels, whose squares are the loss
    assert saved == pytest.approx((image + product + exponent + product) * 4 / 2**20)


def test_weights_stay_as_they_are(monkeypatch):
    seen = []
    original = training.ways_to_train

    def ways(*args, **options):
        seen.append(original(*args, **options))
        seen.append([parameter.detach().clone() for way in seen[0].values() for parameter in way.parameters])
        return seen[0]

    monkeypatch.setattr(training, 'ways_to_train', ways)
    measure_training_step(TINY, shape=(2, 3, 64, 64), **QUICK)
    after = [parameter for way in seen[0].values() for parameter in way.parameters]
    assert all(torch.equal(a, b) for a, b in zip(after, seen[1], strict=True))
    assert all(way.optimizer.state for way in seen[0].values())  # and yet the optimizer has worked


def test_another_result_is_not_timed(monkeypatch):
    original = training.branch_by_branch

    def forgetful(model):
        apart = original(model)
        apart.stages[1].downsample.token_mixer.conv_m.branches = lambda x: x[..., ::2, ::2]
        return apart

    monkeypatch.setattr(training, 'branch_by_branch', forgetful)
    with pytest.raises(RuntimeError, match='the train form differs from the branches by .* nothing was timed'):
        measure_training_step(TINY, shape=(2, 3, 32, 32), **QUICK)


def test_shapes_are_the_published_ones():
    assert SHAPES == {'coco': (2, 3, 800, 1344), 'ade20k': (4, 3, 512, 512), '512': (2, 3, 512, 512)}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(dtype='float16'), "dtype='float16' is not one of float32, bfloat16"),
        (dict(memory_format='NHWC'), "memory_format='NHWC' is not one of contiguous, channels_last"),
        (dict(runtime='openvino'), "runtime='openvino' is not one of eager, compile, cudagraph"),
        (dict(runtime='cudagraph'), 'on cpu: CUDA graphs need --device cuda'),
        (dict(rounds=0), 'rounds=0'),
    ],
    ids=['dtype', 'memory_format', 'runtime', 'no GPU', 'rounds'],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        measure_training_step(TINY, shape=(1, 3, 32, 32), **{**QUICK, **options})
