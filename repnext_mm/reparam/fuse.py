"""Fusing: a function from a model in train form to a new model in deploy form."""

from __future__ import annotations

import copy as copying
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from .surgery import replaced

FORMS = ('default', 'keep_norms')
"""``default`` folds every norm and is the checkpoint format; ``keep_norms`` is what the authors call fused."""

ModuleT = TypeVar('ModuleT', bound=nn.Module)


class Fusible(nn.Module, ABC):
    """A module that knows its deploy form."""

    @abstractmethod
    def fused(self, form: str) -> nn.Module:
        """The deploy form as a new module, or ``self`` when nothing can be fused. Never changes ``self``."""


@dataclass(frozen=True)
class FusionReport:
    """What a fusing did; counts are of the whole model that was given."""

    form: str
    modules: tuple[str, ...]  # names of the fused modules
    parameters_before: int
    parameters_after: int
    norms_before: int
    norms_after: int

    def __bool__(self) -> bool:
        return bool(self.modules)

    def __str__(self) -> str:
        return (
            f'fused {len(self.modules)} modules: '
            f'parameters {self.parameters_before:,} -> {self.parameters_after:,}, '
            f'norms {self.norms_before} -> {self.norms_after}'
        )


def fuse(model: nn.Module, *, form: str = 'default', copy: bool = False) -> tuple[nn.Module, FusionReport]:
    """Fuse every fusible module of a model; kernels are computed in float64 and cast back once.

    Args:
        model: any module; never changed.
        form: one of ``FORMS``.
        copy: return a model that shares nothing with ``model``. By default, what was not fused is shared, so that
            converting it in place (``half()``, ``to()``, ``train()``) would convert ``model`` too.

    Returns:
        The deploy form, and a report that is falsy when there was nothing to fuse.

    Raises:
        ValueError: ``form`` is unknown, or a norm is in training mode.
    """
    if form not in FORMS:
        raise ValueError(f'unknown form {form!r}: choose one of {", ".join(FORMS)}')
    names: list[str] = []

    def deploy_form(name: str, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, Fusible):
            return None
        _refuse_training_norms(name, module)
        new = module.fused(form)
        if new is not module:
            names.append(name)
        return new

    result = replaced(model, deploy_form)
    report = FusionReport(
        form, tuple(names), count_parameters(model), count_parameters(result), count_norms(model), count_norms(result)
    )
    return (copying.deepcopy(result) if copy else result), report


def exact(module: ModuleT) -> ModuleT:
    """A float64 copy on the CPU to compute kernels with, so that they do not depend on dtype or device."""
    clone = copying.deepcopy(module)
    if any(parameter.is_meta for parameter in clone.parameters()):
        return clone  # shapes only
    return clone.to('cpu', torch.float64)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, each shared one counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_norms(model: nn.Module) -> int:
    """Number of norm layers of any kind."""
    return sum(isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm) for module in model.modules())


def _refuse_training_norms(name: str, module: nn.Module) -> None:
    for inner, norm in module.named_modules(prefix=name):
        if isinstance(norm, _BatchNorm) and norm.training:
            raise ValueError(
                f'{inner or type(norm).__name__} is in training mode: fusing bakes in running statistics, '
                'call model.eval() first'
            )
