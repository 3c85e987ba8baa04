"""What a config's `type` is called, however the config says it."""

from __future__ import annotations

from typing import Any

from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.registry import Registry, root
from mmengine.utils import get_object_from_string


def type_name(kind: Any) -> str:
    """The name of a ``type``: ``'RepNeXt'`` of ``'RepNeXt'``, ``'mmdet.RepNeXt'``, a dotted path, or the class itself.

    mmengine's new-style configs hold classes, functions and lazy imports where others hold names. What is registered
    in mmengine's root registries under another name than its own goes by that one: ``PretrainedInit`` is
    ``'Pretrained'``, ``torch.nn.BatchNorm2d`` is mmcv's ``'BN'``.
    """
    if isinstance(kind, str):
        found = get_object_from_string(kind) if kind.count('.') > 1 else None  # one dot is a scope and a name
        if found is None:
            return kind.rpartition('.')[2]
        kind = found
    elif isinstance(kind, LazyAttr | LazyObject):  # a config's own methods resolve them, its raw values do not
        kind = kind.build()
    own = str(getattr(kind, '__name__', kind))
    names = [
        name
        for registry in vars(root).values()
        if isinstance(registry, Registry)
        for name, made in registry.module_dict.items()
        if made is kind
    ]
    return own if not names or own in names else names[0]
