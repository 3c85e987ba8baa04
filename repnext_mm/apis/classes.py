"""Names and colours of classes: those that a checkpoint holds, and those of a config's data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from repnext_mm.apis.config import innermost_datasets
from repnext_mm.checkpoints import plain_dict


def classes_in_checkpoint(content: Mapping[str, Any]) -> dict[str, Any]:
    """``classes``, and perhaps ``palette``, that mmengine or the mm packages before it wrote; empty if they did not."""
    meta = content.get('meta')
    if not isinstance(meta, Mapping):
        return {}
    meta = plain_dict(meta)
    known = meta.get('dataset_meta')
    if isinstance(known, Mapping):
        known = plain_dict(known)
    else:
        known = {name.lower(): meta[name] for name in ('CLASSES', 'PALETTE') if name in meta}
    return dict(known) if isinstance(known.get('classes'), list | tuple) else {}


def classes_of_config(config: Config) -> dict[str, Any]:
    """``classes``, perhaps ``palette``, and what else the config's test data set knows; its files are not read."""
    init_default_scope(config.default_scope)
    dataset = next(innermost_datasets(config.test_dataloader['dataset']))
    return dict(DATASETS.build({**dataset, 'lazy_init': True}).metainfo)
