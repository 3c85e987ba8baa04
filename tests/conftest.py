"""Shared by all tests: reproducible weights that hide no bug, and the reference data."""

from __future__ import annotations

import gc
import json
import math
import os
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.utils import ManagerMixin
from torch import Tensor

from repnext_mm.checkpoints.published import MIRROR
from repnext_mm.reparam.verify import distance, randomize
from tests.tools.starter import leave_configs_as_they_are

__all__ = ['golden_tensor', 'needs_gpu', 'randomize', 'worst_error']

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')

DATA = Path(__file__).parent / 'data'


def _held(register: Callable[[object, str], None]) -> Callable[[object, str], None]:
    """TorchScript knows operators by their address, also after they were replaced (a second overload is defined).

    What lay there next, a list of paddings once, was "builtin cannot be used as a value" in one run of many.
    """
    operators = []

    def hold(operator: object, name: str) -> None:
        operators.append(operator)
        register(operator, name)

    return hold


torch.jit._builtins._register_builtin = _held(torch.jit._builtins._register_builtin)

leave_configs_as_they_are()

VARIABLES: dict[str, str] = {}
"""Of the environment, as it is when the first test begins."""


def pytest_collection_finish() -> None:
    """Let garbage collections pass over the half million objects of the libraries: 6 to 9 % of the time of tests."""
    VARIABLES.update(os.environ)
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_variables() -> Iterator[None]:
    """What a library sets while it is imported or trains would be set for the tests behind it, whichever they are."""
    yield
    for name in os.environ.keys() - VARIABLES.keys():
        if not name.startswith('PYTEST_'):
            del os.environ[name]
    os.environ.update(VARIABLES)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The transforms of mmcv and mmdet crop by Python's and numpy's random numbers."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (that is what they draw from)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _fresh_mmengine() -> Iterator[None]:
    """mmengine keeps loggers (with open files), visualizers and the default scope for the whole process."""
    yield
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            handler.close()
    for manager in _subclasses(ManagerMixin):
        manager._instance_dict.clear()


@pytest.fixture(autouse=True)
def _on_a_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Runner trains on a GPU where there is one; what is equal to the bit is so on a CPU."""
    if needs_gpu.mark not in request.node.iter_markers('skipif'):
        monkeypatch.setattr('mmengine.device.utils.DEVICE', 'cpu')


@pytest.fixture(autouse=True)
def _no_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may ask the authors' page, also in the processes that it starts."""
    monkeypatch.setenv(MIRROR, 'http://127.0.0.1:9')


def _subclasses(kind: type) -> Iterator[type]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def golden_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    """The reference weight of a state-dict key (recipe in tests/data/README.md)."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith('num_batches_tracked'):
        return torch.tensor(0)
    if key.endswith('running_var'):
        value = rng.uniform(0.5, 1.5, shape)
    elif key.endswith('running_mean'):
        value = rng.normal(0, 0.1, shape)
    elif len(shape) == 1:
        value = rng.uniform(0.5, 1.5, shape) if key.endswith('weight') else rng.normal(0, 0.1, shape)
    else:
        value = rng.normal(0, 1 / math.sqrt(math.prod(shape[1:])), shape)
    return torch.from_numpy(value)


@pytest.fixture(scope='session')
def golden() -> Mapping[str, np.ndarray]:
    """Features, logits, loss and gradient norms of the reference M0 in float64."""
    with np.load(DATA / 'm0.npz') as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope='session')
def golden_state() -> dict[str, Tensor]:
    """The reference M0's weights under the authors' keys, both classification heads included, float64."""
    shapes = json.loads((DATA / 'm0_keys.json').read_text())
    return {key: golden_tensor(key, tuple(shape)) for key, shape in shapes.items()}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that at the end no process waits for another."""
    items.sort(key=lambda item: not item.nodeid.startswith('tests/tools/'))


def fast(values: Iterable[str], *names: str) -> list[Any]:
    """Parameters of a test, of which those that are not among ``names`` run with the slow tests only."""
    return [pytest.param(value, marks=[] if value in names else pytest.mark.slow) for value in values]


def worst_error(value: Tensor, reference: Tensor) -> float:
    """Largest difference relative to the largest reference value."""
    assert reference.any(), 'zeros: nothing to compare with'
    return distance(value, reference)
