"""A network from its name: a RepNeXt arch, a registered class, a timm model, or a config file."""

from __future__ import annotations

import importlib.util
import pickle
import warnings
from collections.abc import Mapping
from typing import Any

from mmengine.registry import MODELS, DefaultScope
from torch import nn

from repnext_mm.apis.build import build_model
from repnext_mm.apis.config import SCOPE_PACKAGES, load_config
from repnext_mm.apis.safe_loading import reading_safely
from repnext_mm.errors import UserError
from repnext_mm.models import ARCHITECTURES

TIMM = 'timm/'


def build_named(name: str, *, options: Mapping[str, Any] | None = None) -> nn.Module:
    """A float32 network on the CPU, in eval mode, with the weights that its constructor gives it.

    Args:
        name: a RepNeXt arch (``'m1'``), a class in mmengine's root registry (``'RepNeXtU'``) or in a package's
            (``'mmpretrain.RepVGG'``, or ``'RepVGG'`` where one package has it), a timm model (``'repvit_m0_9'``, or
            ``'timm/repvit_m0_9'``), or a config file, which stands for its classifier or else its backbone.
        options: arguments of the constructor; of a config file, its overrides.

    Raises:
        UserError: there is no such model, or it does not take the options.
    """
    options = dict(options or {})
    if name.endswith('.py'):
        return _in_eval_mode(_from_config(name, options))
    if name in ARCHITECTURES:
        name, options = 'RepNeXt', {'arch': name, **options}
    found = _candidates(name)
    if not found:
        raise UserError(
            f"model '{name}' is unknown: name a RepNeXt arch ({', '.join(ARCHITECTURES)}), a class of MODELS such as "
            'RepNeXtU or mmpretrain.RepVGG, a timm model such as timm/repvit_m0_9, or a config file'
        )
    if len(found) > 1:
        raise UserError(f"model '{name}' is in several libraries: say {' or '.join(found)}")
    try:
        return _in_eval_mode(_built(found[0], options))
    except (AssertionError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        given = ' '.join(f'{key}={value}' for key, value in options.items()) or 'its defaults'
        raise UserError(
            f"model '{name}' cannot be built with {given} ({reason}): give its arguments as --options KEY=VALUE"
        ) from error


def _in_eval_mode(model: nn.Module) -> nn.Module:
    model.eval()  # apart: what some of MMPretrain's backbones return is None
    return model


def _candidates(name: str) -> list[str]:
    """Unambiguous names of what a name may mean."""
    if name.startswith(TIMM):
        return [name] if _timm_has(name.removeprefix(TIMM)) else []
    scope, _, kind = name.rpartition('.')
    if scope:
        return [name] if _registered(scope, kind) else []
    here = [name] if name in MODELS.module_dict else []
    there = [TIMM + name] if _timm_has(name) else []
    if here or there:
        return here + there
    return [f'{package}.{name}' for package in SCOPE_PACKAGES if _registered(package, name)]


def _registered(package: str, kind: str) -> bool:
    if importlib.util.find_spec(package) is None:
        return False
    try:
        registry = importlib.import_module(f'{package}.registry').MODELS
    except (AttributeError, ImportError):  # no package of the mm family
        return False
    registry.import_from_location()
    return kind in registry.module_dict


def _timm_has(name: str) -> bool:
    if importlib.util.find_spec('timm') is None:
        return False
    import timm

    return timm.is_model(name)


def _built(name: str, options: dict[str, Any]) -> nn.Module:
    if name.startswith(TIMM):
        import timm

        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # timm talks about overwritten and deprecated entries
            try:
                return timm.create_model(name.removeprefix(TIMM), pretrained=False, **options)
            except (RuntimeError, TypeError) as error:
                if not options:
                    raise
                given = ', '.join(f'{key}={value!r}' for key, value in options.items())
                raise UserError(f'timm does not build {name!r} with {given}: {error}') from error
    scope, _, kind = name.rpartition('.')
    with reading_safely(), DefaultScope.overwrite_default_scope(scope or None):
        return MODELS.build({'type': name if scope else kind, **options})


def _from_config(path: str, options: dict[str, Any]) -> nn.Module:
    config = load_config(path, options=options)
    if config.get('model') is None:
        raise UserError(f"config '{path}' has no `model`: give a config of a model, or name a model")
    model = build_model(config)
    classifier = hasattr(getattr(model, 'head', None), 'pre_logits')
    return model if classifier else getattr(model, 'backbone', model)
