"""What the models use of mmengine: registry, base class and log; with torch alone, as little as that in their place."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar

from torch import nn

from repnext_mm.errors import UserError

HAS_MMENGINE = find_spec('mmengine') is not None

if HAS_MMENGINE:
    from mmengine.config.lazy import LazyAttr, LazyObject
    from mmengine.logging import print_log
    from mmengine.model import BaseModule
    from mmengine.registry import MODELS, Registry, root
    from mmengine.utils import get_object_from_string
else:

    class BaseModule(nn.Module):  # type: ignore[no-redef]
        """A module with ``init_cfg`` and ``init_weights``, which without mmengine know no entry."""

        def __init__(self, init_cfg: dict | list[dict] | None = None) -> None:
            super().__init__()
            self.init_cfg = copy.deepcopy(init_cfg)

        def init_weights(self) -> None:
            if self.init_cfg:
                raise UserError(
                    f'init_cfg {self.init_cfg} needs mmengine, which is not installed: install it, or use an entry of '
                    "type 'Pretrained'"
                )


Made = TypeVar('Made', bound=Callable[..., Any])


def register(name: str | None = None) -> Callable[[Made], Made]:
    """Register a class or function in mmengine's root registry of models, where mmengine is installed."""
    return MODELS.register_module(name=name) if HAS_MMENGINE else lambda made: made


def log(message: str, *, level: int = logging.INFO) -> None:
    """Write to the log of the run, or to the logger ``repnext_mm`` where there is no mmengine."""
    if HAS_MMENGINE:
        print_log(message, logger='current', level=level)
    else:
        logging.getLogger('repnext_mm').log(level, message)


def type_name(kind: Any) -> str:
    """The name of a config's ``type``: ``'RepNeXt'`` for ``'RepNeXt'``, ``'mmdet.RepNeXt'``, a dotted path, the class.

    mmengine's new-style configs hold classes, functions and lazy imports where others hold names. What is registered
    in mmengine's root registries under another name than its own goes by that one: ``PretrainedInit`` is
    ``'Pretrained'``, ``torch.nn.BatchNorm2d`` is mmcv's ``'BN'``.
    """
    if not HAS_MMENGINE:
        return str(getattr(kind, '__name__', kind)).rpartition('.')[2]
    if isinstance(kind, str):
        found = get_object_from_string(kind) if kind.count('.') > 1 else None  # one dot is a scope and a name
        if found is None:
            return kind.rpartition('.')[2]
        kind = found
    elif isinstance(kind, LazyAttr | LazyObject):  # a config's own methods resolve them, its raw values do not
        kind = kind.build()
    own = str(getattr(kind, '__name__', kind))
    names = [  # in any of its registries
        name
        for registry in vars(root).values()
        if isinstance(registry, Registry)
        for name, made in registry.module_dict.items()
        if made is kind
    ]
    return own if not names or own in names else names[0]
