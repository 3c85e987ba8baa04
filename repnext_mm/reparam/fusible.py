"""A module that knows its deploy form, and names the forms that it has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, cast

from torch import nn

from repnext_mm.errors import UserError
from repnext_mm.reparam.plain_layers import is_intercepted, why_intercepted, written_methods

Form = str | Mapping[str, str]
"""One form for the whole model, or forms for parts of it: ``{'stages.0': 'dense', 'stages.2': 'half'}``."""


class Fusible(nn.Module, ABC):
    """A module that knows its deploy form.

    ``forms`` names the exact forms that a class knows: ``default`` folds every norm and is the checkpoint format,
    ``keep_norms`` merges branches only. A class that has more names those too; in all others a form that they do not
    know is the default.
    """

    # Not annotated: scripting with PyTorch 2.1 fails where a class has annotations in words, as they are in this file.
    forms = cast(tuple[str, ...], ('default', 'keep_norms'))
    overridden_method = ''  # by a subclass that does not say what becomes of it in ``fused``
    methods_as_written = cast(tuple[object, ...], ())  # what another library puts in their place counts

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.overridden_method = _overridden(cls)
        cls.methods_as_written = written_methods(cls)

    @abstractmethod
    def fused(self, form: str) -> nn.Module:
        """The deploy form as a new module, or ``self`` when nothing can be fused. Never changes ``self``."""

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        """Layers that ``fused`` reads, and why one has to be called instead (else ``''``); children that fuse apart."""
        return iter(())

    def not_plain(self, form: str = 'default') -> tuple[str, ...]:
        """What ``fused`` leaves as it is in here, and why: ``'NAME: REASON'`` each, or ``REASON`` for this module.

        Where a layer does more than its weights say (see ``plain_layers``), the module that would read it calls it,
        before and after fusing.
        """
        names = {module: name for name, module in self.named_modules()}
        reasons: dict[nn.Module, str] = {}
        for fusible in (module for module in names if isinstance(module, Fusible)):
            for module, reason in ((fusible, why_intercepted(fusible)), *fusible.obstacles(form)):
                reasons[module] = reasons.get(module) or reason
        return tuple(': '.join(filter(None, (names[module], reason))) for module, reason in reasons.items() if reason)

    def fuse(self) -> nn.Module:
        """The default deploy form, with the running statistics whatever the mode, under the name that timm calls.

        ``reparameterize_model`` calls it on every child, and ``reparam.fuse`` does more, and refuses a norm in
        training mode.
        """
        modes = {module: module.training for module in self.modules()}
        try:
            new = fused_or_kept(self.eval(), 'default')
        finally:
            for module, training in modes.items():
                module.training = training
        for module in new.modules():
            module.training = modes.get(module, self.training)
        return new


def _overridden(kind: type[Fusible]) -> str:
    """A method that computes the output, if a class has another one than its bases and leaves their fusing as it is."""
    fusing = ('fused', 'kernel', 'branch_kernels')
    further = kind.__mro__[
        : next(i for i, base in enumerate(kind.__mro__) if any(name in vars(base) for name in fusing))
    ]
    for index, base in enumerate(further):
        for name in ('forward', 'branches'):
            before = next((vars(other)[name] for other in kind.__mro__[index + 1 :] if name in vars(other)), None)
            known = before is not None and before is not nn.Module.forward
            if name in vars(base) and known and not getattr(before, '__isabstractmethod__', False):
                return name
    return ''


def fused_or_kept(module: nn.Module, form: str) -> nn.Module:
    """The deploy form of a part, or the part itself: when it has none, and when its call does more than its class."""
    return module.fused(form) if isinstance(module, Fusible) and not is_intercepted(module) else module


def forms_of(model: nn.Module) -> tuple[str, ...]:
    """The forms that make a difference in a model, ``default`` first: those that the classes in it name."""
    named = (module.forms for module in model.modules() if isinstance(module, Fusible))
    return tuple(dict.fromkeys(chain(Fusible.forms, *named)))


def check_form(form: Form) -> None:
    """Raise a ``ValueError`` unless every form is known to some class that is loaded, in this model or not."""
    known = tuple(dict.fromkeys(_named_from(Fusible)))
    given: object = form  # from a config it may be anything
    if not isinstance(given, str | Mapping):
        raise UserError(f'form {form!r} must be one of {", ".join(known)}, or a dict from parts to them')
    for name in (form,) if isinstance(form, str) else form.values():
        if name not in known:
            raise UserError(f'unknown form {name!r}: choose one of {", ".join(known)}')


def _named_from(kind: Any) -> Iterator[str]:
    yield from kind.forms
    for subclass in kind.__subclasses__():
        yield from _named_from(subclass)
