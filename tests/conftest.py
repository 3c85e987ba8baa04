"""Shared by all tests: reproducible weights that hide no bug, and the reference data."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.utils import ManagerMixin
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

DATA = Path(__file__).parent / 'data'


@pytest.fixture(autouse=True)
def _seeded() -> None:
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


def _subclasses(kind: type) -> Iterator[type]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms non-trivial weights and statistics: with fresh ones, every fusing bug is invisible."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model


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


def worst_error(value: Tensor, reference: Tensor) -> float:
    """Largest difference relative to the largest reference value."""
    return ((value - reference).abs().max() / reference.abs().max()).item()
