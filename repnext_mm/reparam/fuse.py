"""Fusing: a function from a model in train form to a new model in deploy form."""

from __future__ import annotations

import copy as copying
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from repnext_mm.errors import UserError
from repnext_mm.reparam.converters import convert
from repnext_mm.reparam.fold_norms import fold_pairs
from repnext_mm.reparam.fusible import Form, Fusible, check_form
from repnext_mm.reparam.kernel import looks_frozen, refuse_training_norms
from repnext_mm.reparam.plain_layers import is_norm, on_the_instance, why_not_as_written
from repnext_mm.reparam.surgery import anchored, replaced
from repnext_mm.reparam.unchanged import generators_kept


@dataclass(frozen=True)
class FusionReport:
    """What a fusing did; counts are of the whole model that was given."""

    form: Form
    modules: tuple[str, ...]  # names of the fused modules
    parameters_before: int
    parameters_after: int
    norms_before: int
    norms_after: int
    refused: tuple[str, ...] = ()  # what was left as it is though it has a deploy form, and why
    errors: tuple[float, ...] = ()  # of ``fuse_checked``: relative, per output level

    def __bool__(self) -> bool:
        return bool(self.modules)

    def __str__(self) -> str:
        refused = f', refused {len(self.refused)}' if self.refused else ''
        return (
            f'fused {len(self.modules)} modules: '
            f'parameters {self.parameters_before:,} -> {self.parameters_after:,}, '
            f'norms {self.norms_before} -> {self.norms_after}{refused}'
        )


def fuse(
    model: nn.Module, *, form: Form = 'default', copy: bool = False, foreign: bool = True, probe: Tensor | None = None
) -> tuple[nn.Module, FusionReport]:
    """Fuse a model; kernels are computed in float64 and cast back once.

    First every ``Fusible``, then the modules of other libraries that have their own method for it (see ``converters``),
    then batch norms with the plain layers around them (see ``fold_norms``). What does more than its class says
    (hooks, replaced methods), and what code may use in a way that cannot be followed, is left as it is and named in
    the report. Random generators are left where they are.

    Args:
        model: any module; never changed.
        form: a form that a class names (see ``Fusible``), or a mapping from names of modules in ``model`` to forms; the
            longest name that holds a module counts, and what none holds gets ``default``.
        copy: return a model that shares nothing with ``model``. By default, what was not fused is shared, so that
            converting it in place (``half()``, ``to()``, ``train()``) would convert ``model`` too.
        foreign: fuse also what is not a ``Fusible``. Without, the rest keeps its structure and its weights' names.
        probe: an input of the model, to check the methods of other libraries and the folded norms with: what changes
            the output is left out. Without it, such methods are taken at their word; compare with ``relative_error``.

    Returns:
        The deploy form, and a report that is falsy when there was nothing to fuse.

    Raises:
        ValueError: ``form`` is unknown or names no module, a norm is in training mode, or weights are not there as a
            whole (FSDP), or cannot be copied.
    """
    check_form(form)
    forms = {'': form} if isinstance(form, str) else dict(form)
    unknown = forms.keys() - dict(model.named_modules(remove_duplicate=False)).keys()
    if unknown:
        raise UserError(f'form names {", ".join(sorted(unknown))}, which {type(model).__name__} does not have')
    if pieces := sharded(model):
        raise ValueError(
            f'{pieces} is sharded (FSDP), and each process holds pieces of its weights only: gather a full state dict, '
            'load it into a model without FSDP, and fuse that'
        )
    names: list[str] = []
    refused: list[str] = []
    stay = anchored(model)

    def deploy_form(name: str, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, Fusible):
            return None
        refuse_training_norms(name, module)
        form_here = _form_of(name, forms)
        reasons = module.not_plain(form_here)
        refused.extend('.'.join(filter(None, (name, reason))) for reason in reasons if ': ' in reason)
        if reason := on_the_instance(module) or why_not_as_written(module):
            stay[module] = reason  # with its parts, which it may read
            return module
        new = module.fused(form_here)
        if new is not module:
            names.append(name)
        return new

    with generators_kept():
        result = replaced(model, deploy_form, left=dict(stay))
        inner = {module: name for name, module in model.named_modules()}
        refused += [
            f'{inner[module] or type(module).__name__}: {reason}'
            for module, reason in stay.items()
            if any(isinstance(part, Fusible) or is_norm(part) for part in module.modules())
        ]
        for module in result.modules():
            if isinstance(module, Fusible) and module.not_plain():  # it may still read its parts
                stay.setdefault(module, 'something in it has to be called')
        if foreign:
            result, converted, reasons = convert(result, stay=stay, probe=probe)
            names += converted
            refused += reasons
        if foreign and any(map(is_norm, result.modules())):  # following the data takes time
            result, folded, reasons = fold_pairs(result, stay=stay, probe=probe)
            names += folded
            refused += reasons
    report = FusionReport(
        form,
        tuple(names),
        count_parameters(model),
        count_parameters(result),
        count_norms(model),
        count_norms(result),
        tuple(dict.fromkeys(refused)),
    )
    return (_copied(result) if copy else result), report


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, each shared one counted once, those of lazy layers when they have a shape."""
    return sum(parameter.numel() for parameter in model.parameters() if not is_lazy(parameter))


def count_norms(model: nn.Module) -> int:
    """Number of norm layers of any kind, frozen ones too."""
    kinds = (_NormBase, nn.GroupNorm, nn.LayerNorm)
    return sum(isinstance(module, kinds) or looks_frozen(module) for module in model.modules())


def sharded(model: nn.Module) -> str:
    """The name of a module of whose weights each process holds pieces only (FSDP); empty where there is none."""
    for name, module in model.named_modules():
        kinds = {kind.__name__ for kind in (*type(module).__mro__, *map(type, module._parameters.values()))}
        if kinds & {'FullyShardedDataParallel', 'FSDPModule', 'DTensor', 'FlatParameter'}:
            return name or type(module).__name__
    return ''


def _copied(model: nn.Module) -> nn.Module:
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                raise ValueError(
                    f'{name or type(module).__name__}.{key} is computed from other weights (weight_norm, spectral_norm '
                    'or pruning) and cannot be copied: call the remove function of that method first, or fuse under '
                    'torch.no_grad() with copy=False'
                )
    return copying.deepcopy(model)


def _form_of(name: str, forms: Mapping[str, str]) -> str:
    holders = [prefix for prefix in forms if not prefix or name == prefix or name.startswith(f'{prefix}.')]
    return forms[max(holders, key=len)] if holders else 'default'
