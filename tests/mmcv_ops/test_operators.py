"""Our operators against mmcv's compiled ones: by a file in every run, and live on new inputs where those are."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from repnext_mm.mmcv_ops import operators
from tests.conftest import needs_gpu
from .cases import CASES, HALF, Case, difference, tolerance_of
from .swap import OnGpu, needs_compiled
from .write_reference import FILE, SEED


@functools.cache
def reference() -> dict[str, torch.Tensor]:
    with np.load(FILE) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def multiplies_halves() -> bool:
    try:
        torch.eye(2).half() @ torch.eye(2).half()
    except RuntimeError:
        return False
    return True


# Those of a GPU, whose threads add in any order.
OTHER_SUMS = {torch.float16: HALF, torch.float32: 1e-5, torch.float64: 1e-13}


def check(
    case: Case, results: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, in_order: bool = True
) -> None:
    assert results.keys() == expected.keys()
    for key, value in expected.items():
        error, limit = difference(results[key], value), tolerance_of(case, key, value)
        limit = limit if in_order else max(limit, OTHER_SUMS.get(value.dtype, limit))
        assert error <= limit, f'{key} differs by {error:.3g}'


@pytest.mark.parametrize('case', [case for case in CASES if case.stored], ids=lambda case: case.name)
def test_as_compiled_by_the_reference_file(case):
    expected = {name.split('/')[1]: value for name, value in reference().items() if name.split('/')[0] == case.name}
    assert expected, 'run python -m tests.mmcv_ops.write_reference'
    if 'conv' in case.name and 'float16' in case.name and not multiplies_halves():
        pytest.skip('this torch multiplies no float16 matrices on a CPU, for compiled operators neither')
    check(case, case.run(operators, SEED), expected)


@pytest.mark.slow
@needs_compiled
@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_as_compiled_on_new_inputs(case):
    import mmcv._ext as compiled

    for seed in range(1, 6):
        check(case, case.run(operators, seed), case.run(compiled, seed))


@needs_gpu
@pytest.mark.parametrize('case', [case for case in CASES if case.stored], ids=lambda case: case.name)
def test_on_a_gpu_as_on_a_cpu(case, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    check(case, case.run(OnGpu(), 1), case.run(operators, 1), in_order=False)


@pytest.mark.parametrize('larger', [0, 8])
def test_no_image_is_no_error(larger):
    """The gradients of a batch without an image, with offsets of the output's size and larger."""
    from repnext_mm.mmcv_ops.deform_conv import _fill_first, _first

    given = torch.ones(0, 18, 8 + larger, 8 + larger)
    read = _first(given, torch.Size((8, 8)))
    assert read.shape == (0, 18, 8, 8)
    _fill_first(given, read)
    assert given.shape == (0, 18, 8 + larger, 8 + larger)
