"""Modules of other libraries that know their deploy form: converted by their own methods, on a copy, and checked."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import FunctionType, MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from repnext_mm.reparam.fusible import Fusible
from repnext_mm.reparam.kernel import as_float64, placed, refuse_training_norms
from repnext_mm.reparam.plain_layers import on_the_instance
from repnext_mm.reparam.surgery import anchored, replaced, sealed, skeleton
from repnext_mm.reparam.unchanged import state_kept
from repnext_mm.reparam.verify import all_within, relative_error

PROTOCOLS = ('switch_to_deploy', 'reparameterize', 'fuse')
"""Methods without arguments that convert a module in place, or return the deploy form; of several, the first counts.

MMPretrain's blocks have ``switch_to_deploy``, and a ``reparameterize`` that only returns weights; timm's blocks have
any of the three.
"""

_RUNNING: ContextVar[tuple[nn.Module, ...]] = ContextVar('running', default=())
"""Modules whose own method runs: where it fuses, as that of a backbone of ours does, it is not to call itself."""

TOLERANCE = 1e-5  # relative. Checks run in float64, but a module may compute in float32 inside


class Converted(NamedTuple):
    """What became of a model."""

    model: nn.Module
    names: tuple[str, ...]  # of the converted modules
    refused: tuple[str, ...]  # modules that were left as they are, and why


class Inputs(NamedTuple):
    """What a module was called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def convert(
    model: nn.Module,
    *,
    stay: Mapping[nn.Module, str] = MappingProxyType({}),
    probe: Tensor | None = None,
) -> Converted:
    """Convert the outermost modules that have a method of ``PROTOCOLS``, and then those that remain inside them.

    A ``Fusible`` fuses by itself: it and what holds one are not foreign.
    The methods run on a float64 copy on the CPU; what comes out has the dtype, device, memory format and mode of the
    module that went in, and what is new in it needs no gradient.

    Args:
        model: never changed.
        stay: modules that are left as they are with their parts, beside those that ``anchored`` finds.
        probe: an input of the model. With it, each conversion is checked on what reaches its module, and one that
            changes the output, or that the probe does not reach, is left out.

    Raises:
        ValueError: a norm is in training mode.
    """
    conversion = _Conversion(anchored(model) | dict(stay))
    with state_kept(model):
        result = conversion.walk(model, None if probe is None else Inputs((probe,), {}))
    return Converted(result, tuple(conversion.names), tuple(conversion.refused))


class _Refused(Exception):
    """A conversion is not to be trusted."""


class _Conversion:
    def __init__(self, left: Mapping[nn.Module, str]) -> None:
        self.names: list[str] = []
        self.refused: list[str] = []
        self._left = left

    def walk(self, root: nn.Module, given: Inputs | None, *, prefix: str = '', inside: bool = False) -> nn.Module:
        """Convert in ``root``, or only ``inside`` it; ``given`` is what ``root`` is called with, if that is known."""
        clone, clones = skeleton(root)
        methods = {module: method for module in clones if (method := self._method(module))}
        if inside:
            methods.pop(root, None)
        if not methods:
            return root
        if given is not None:
            refuse_training_norms(prefix, root)  # a run would update their statistics
            inputs = _recorded(clone, {clones[module]: module for module in methods}, given)

        def deploy_form(name: str, module: nn.Module) -> nn.Module | None:
            if module not in methods:
                return None
            name = '.'.join(filter(None, (prefix, name)))
            refuse_training_norms(name, module)
            count = len(self.names), len(self.refused)
            try:
                if reason := _intercepted(module):
                    raise _Refused(reason)
                if given is not None and module not in inputs:
                    raise _Refused('the probe does not reach it')
                return self._converted(name, module, methods[module], inputs[module] if given is not None else None)
            except Exception as error:  # whatever foreign code raises
                del self.names[count[0] :], self.refused[count[1] :]
                reason = str(error) if isinstance(error, _Refused) else f'{type(error).__name__}: {error}'
                self.refused.append(f'{name or type(module).__name__}.{methods[module]}(): {reason}')
                return None

        return replaced(root, deploy_form, left=self._left)

    def _converted(self, name: str, module: nn.Module, method: str, given: Inputs | None) -> nn.Module | None:
        copy = as_float64(module)
        kept = list(copy.parameters())  # not their ids only, which others could get
        running = _RUNNING.set((*_RUNNING.get(), copy))
        try:
            with _defaults_of(copy), torch.no_grad():
                returned = getattr(copy, method)()
        finally:
            _RUNNING.reset(running)
        new = copy if returned is None else returned
        if not isinstance(new, nn.Module):
            raise _Refused(f'it returned a {type(new).__name__}, which is not a module')
        if _same(new, module):
            return None  # it was in deploy form already
        modes = {key: inner.training for key, inner in module.named_modules()}
        for key, inner in new.named_modules():
            inner.training = modes.get(key, module.training)
        if given is not None:
            errors = relative_error(_Call(new, given), _Call(as_float64(module), given), torch.empty(0))
            if not all_within(errors, TOLERANCE):
                raise _Refused(f'it changes the output by {max(errors):.1e} (relative)')
        self.names.append(name)
        return _settled(self.walk(new, given, prefix=name, inside=True), module, kept)

    def _method(self, module: nn.Module) -> str | None:
        if sealed(module) or type(module).__module__.startswith('torch.'):
            return None
        if any(module is running for running in _RUNNING.get()):
            return None
        for name in PROTOCOLS:
            # of the class: wrappers answer for what they hold
            method = inspect.getattr_static(type(module), name, None)
            if isinstance(method, FunctionType) and not _required(method):
                return None if any(isinstance(part, Fusible) for part in module.modules()) else name
        return None


def _intercepted(root: nn.Module) -> str:
    """What a method of the library would not know of: hooks, and what was replaced on an instance."""
    for name, module in root.named_modules():
        if reason := on_the_instance(module):
            return f'{name}: {reason}' if name else reason
    return ''


class _Call(nn.Module):
    """A module with its recorded input."""

    def __init__(self, module: nn.Module, given: Inputs) -> None:
        super().__init__()
        self.module = module
        self.given = given

    def forward(self, _: Tensor) -> Any:
        args, kwargs = _exact_inputs(self.given)  # a copy: modules may write over their input
        return self.module(*args, **kwargs)


@torch.no_grad()
def _recorded(root: nn.Module, watched: dict[nn.Module, nn.Module], given: Inputs) -> dict[nn.Module, Inputs]:
    """What each watched module gets first when ``root`` runs, under the module that it stands for."""
    inputs: dict[nn.Module, Inputs] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if watched[module] not in inputs:
            inputs[watched[module]] = _exact_inputs(Inputs(args, kwargs))

    for module in watched:
        module.register_forward_pre_hook(record, with_kwargs=True)
    args, kwargs = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, tuple(given))
    root(*args, **kwargs)
    return inputs


def _exact_inputs(inputs: Inputs) -> Inputs:
    def exact_copy(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        dtype = torch.float64 if value.is_floating_point() else value.dtype
        return value.detach().to('cpu', dtype, copy=True)

    return Inputs(*tree_map(exact_copy, tuple(inputs)))


@contextmanager
def _defaults_of(module: nn.Module) -> Iterator[None]:
    """Let new tensors have a module's dtype and device: many methods build layers without saying which."""
    tensor = next((x for x in (*module.parameters(), *module.buffers()) if x.is_floating_point()), torch.empty(0))
    before = torch.get_default_dtype()
    torch.set_default_dtype(tensor.dtype)
    try:
        with tensor.device:
            yield
    finally:
        torch.set_default_dtype(before)


def _settled(new: nn.Module, source: nn.Module, kept: list[nn.Parameter]) -> nn.Module:
    """Give a converted module the dtype, device, memory format and gradients of the module that it came from."""
    own: dict[str, Tensor] = {**dict(source.named_parameters()), **dict(source.named_buffers())}
    floating = [tensor for tensor in own.values() if tensor.is_floating_point()]
    typical = next((tensor for tensor in floating if tensor.dim() == 4), next(iter(floating), torch.empty(0)))
    old = {id(parameter) for parameter in kept}
    done: dict[int, Tensor] = {}  # shared tensors stay shared

    def settle(name: str, tensor: Tensor) -> Tensor:
        if id(tensor) in done:
            return done[id(tensor)]
        like = own.get(name, typical)
        value = placed(tensor, like=like) if tensor.is_floating_point() else tensor.to(typical.device)
        if isinstance(tensor, nn.Parameter):
            trained = id(tensor) in old and name in own and own[name].requires_grad
            value = nn.Parameter(value, requires_grad=trained)
        done[id(tensor)] = value
        return value

    for name, module in new.named_modules():
        for tensors in (module._parameters, module._buffers, vars(module)):
            for key, tensor in list(tensors.items()):
                if isinstance(tensor, Tensor):
                    tensors[key] = settle(f'{name}.{key}' if name else key, tensor)
    return new


def _same(new: nn.Module, old: nn.Module) -> bool:
    kinds, tensors = [
        [[(name, type(module)) for name, module in model.named_modules()] for model in (new, old)],
        [{**dict(model.named_parameters()), **dict(model.named_buffers())} for model in (new, old)],
    ]
    if kinds[0] != kinds[1] or tensors[0].keys() != tensors[1].keys():
        return False
    return all(
        value.shape == tensors[1][name].shape and (value.is_meta or torch.equal(value, tensors[1][name].to(value)))
        for name, value in tensors[0].items()
    )


def _required(method: FunctionType) -> list[str]:
    """The arguments that a method cannot be called without."""
    parameters = list(inspect.signature(method).parameters.values())[1:]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]
