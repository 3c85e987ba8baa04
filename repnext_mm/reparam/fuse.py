"""Fusing: a function from a model in train form to a new model in deploy form."""

from __future__ import annotations

import copy as copying
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from .surgery import replaced

FORMS = ('default', 'keep_norms', 'half', 'three_quarters', 'dense')
"""Exact forms: ``default`` folds every norm and is the checkpoint format, ``keep_norms`` what the authors call fused.

The others fold every norm too and merge scales of RepNeXt's token mixers into fewer, larger convolutions: small and
medium (``half`` of the channels), the identity too (``three_quarters``), or all in one 11x11 (``dense``).
"""

Form = str | Mapping[str, str]
"""One form for the whole model, or forms for parts of it: ``{'stages.0': 'dense', 'stages.2': 'half'}``."""

ModuleT = TypeVar('ModuleT', bound=nn.Module)


class Fusible(nn.Module, ABC):
    """A module that knows its deploy form."""

    @abstractmethod
    def fused(self, form: str) -> nn.Module:
        """The deploy form as a new module, or ``self`` when nothing can be fused. Never changes ``self``."""

    def fuse(self) -> nn.Module:
        """The default deploy form, under the name that timm's ``reparameterize_model`` calls on every child.

        Raises:
            ValueError: a norm is in training mode.
        """
        _refuse_training_norms('', self)
        return self.fused('default')


@dataclass(frozen=True)
class FusionReport:
    """What a fusing did; counts are of the whole model that was given."""

    form: Form
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


def fuse(model: nn.Module, *, form: Form = 'default', copy: bool = False) -> tuple[nn.Module, FusionReport]:
    """Fuse every fusible module of a model; kernels are computed in float64 and cast back once.

    Args:
        model: any module; never changed.
        form: one of ``FORMS``, or a mapping from names of modules in ``model`` to forms; the longest name that holds a
            module counts, and what none holds gets ``default``.
        copy: return a model that shares nothing with ``model``. By default, what was not fused is shared, so that
            converting it in place (``half()``, ``to()``, ``train()``) would convert ``model`` too.

    Returns:
        The deploy form, and a report that is falsy when there was nothing to fuse.

    Raises:
        ValueError: ``form`` is unknown or names no module, or a norm is in training mode.
    """
    check_form(form)
    forms = {'': form} if isinstance(form, str) else dict(form)
    unknown = forms.keys() - dict(model.named_modules(remove_duplicate=False)).keys()
    if unknown:
        raise ValueError(f'form names {", ".join(sorted(unknown))}, which {type(model).__name__} does not have')
    names: list[str] = []

    def deploy_form(name: str, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, Fusible):
            return None
        _refuse_training_norms(name, module)
        new = module.fused(_form_of(name, forms))
        if new is not module:
            names.append(name)
        return new

    result = replaced(model, deploy_form)
    report = FusionReport(
        form, tuple(names), count_parameters(model), count_parameters(result), count_norms(model), count_norms(result)
    )
    return (copying.deepcopy(result) if copy else result), report


def check_form(form: Form) -> None:
    """Raise a ``ValueError`` unless every form is known."""
    for name in (form,) if isinstance(form, str) else form.values():
        if name not in FORMS:
            raise ValueError(f'unknown form {name!r}: choose one of {", ".join(FORMS)}')


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


def _form_of(name: str, forms: Mapping[str, str]) -> str:
    holders = [prefix for prefix in forms if not prefix or name == prefix or name.startswith(f'{prefix}.')]
    return forms[max(holders, key=len)] if holders else 'default'


def _refuse_training_norms(name: str, module: nn.Module) -> None:
    for inner, norm in module.named_modules(prefix=name):
        if isinstance(norm, _BatchNorm) and norm.training:
            raise ValueError(
                f'{inner or type(norm).__name__} is in training mode: fusing bakes in running statistics, '
                'call model.eval() first'
            )
