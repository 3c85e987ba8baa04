"""What a weight file is: writer, task, form and architecture, read off its keys and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from repnext_mm.checkpoints.read import plain_dict

FORMS = {  # a key that only this form of a backbone has
    'train': re.compile(r'conv_s\.conv_3_3\.weight$|channel_mixer\.0\.conv\.weight$'),
    'merged': re.compile(r'blocks\.\d+\.token_mixer\.conv\.weight$'),
    'fused': re.compile(r'conv_s\.weight$|channel_mixer\.0\.weight$'),
}


_LAST_OF_BLOCK = re.compile(r'(?:^|\.)stages\.(\d{1,3})\.blocks\.(\d{1,3})\.channel_mixer\.2(?:\.conv)?\.weight$')
_SHOWN = 200  # characters of dimensions


class ArchLike(Protocol):
    """The fields of an architecture that shapes tell."""

    @property
    def embed_dims(self) -> tuple[int, ...]: ...
    @property
    def depths(self) -> tuple[int, ...]: ...
    @property
    def token_mixer(self) -> str: ...


@dataclass(frozen=True)
class Recognized:
    """What is known about a state dict."""

    task: str  # 'backbone', 'classifier', 'detector', 'segmentor' or 'unknown'
    form: str  # 'train', 'keep_norms' (what the authors call fused), 'default' (no norms), 'merged' or 'unknown'
    arch: str | None  # a name of the table, or the dimensions found
    prefix: str  # of the backbone's keys: '', 'backbone.' or longer


def recognize(state: Mapping[str, Tensor], architectures: Mapping[str, ArchLike]) -> Recognized:
    """Read task, form and architecture off a state dict.

    Args:
        state: the weights.
        architectures: the table of known architectures by name.
    """
    prefix = _prefix(state)
    backbone = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    whole = prefix.removesuffix('backbone.')
    below = {key.removeprefix(whole).split('.')[0] for key in state if key.startswith(whole)}
    return Recognized(_task(below), _form(backbone), _arch(backbone, architectures), prefix)


def writer_of(content: Mapping[str, Any]) -> str:
    """Which program wrote a checkpoint, by the entries beside the weights."""
    meta = content.get('meta')
    if isinstance(meta, Mapping):
        meta = plain_dict(meta)
        for name in ('mmengine', 'mmdet', 'mmseg'):
            version = meta.get(f'{name}_version')
            if isinstance(version, str) and version[:40].isprintable():
                return f'{name} {version[:40]}'
        return 'an OpenMMLab project'
    if 'state_dict' in content and {'arch', 'epoch'} <= content.keys():
        return "timm's saver"
    if 'model' in content:
        return "the authors' classification training"
    return 'unknown'


def _prefix(state: Mapping[str, Tensor]) -> str:
    starts = {key[: found.start()] for key in state if (found := _LAST_OF_BLOCK.search(key))}
    if len(starts) == 1:
        start = starts.pop()
        return f'{start}.' if start else ''
    return 'backbone.' if any(key.startswith('backbone.') for key in state) else ''


def _task(tops: set[str]) -> str:
    if tops & {'roi_head', 'rpn_head', 'bbox_head', 'mask_head'}:
        return 'detector'
    if 'decode_head' in tops:
        return 'segmentor'
    if 'stem' in tops or 'backbone' in tops:
        return 'classifier' if 'head' in tops else 'backbone'
    return 'unknown'


def _form(backbone: Mapping[str, Tensor]) -> str:
    if any(FORMS['train'].search(key) for key in backbone):
        return 'train'
    if any(FORMS['merged'].search(key) for key in backbone):
        return 'merged'  # a form for speed alone
    if any(FORMS['fused'].search(key) for key in backbone):
        return 'keep_norms' if any(key.endswith('norm.running_mean') for key in backbone) else 'default'
    return 'unknown'


def _arch(backbone: Mapping[str, Tensor], architectures: Mapping[str, ArchLike]) -> str | None:
    widths: dict[int, int] = {}
    depths: dict[int, int] = {}
    for key, value in backbone.items():
        found = _LAST_OF_BLOCK.match(key)
        if found and value.dim():
            stage, block = int(found[1]), int(found[2])
            widths[stage] = value.shape[0]
            depths[stage] = max(depths.get(stage, 0), block + 1)
    if not widths:
        return None
    single = any(re.search(r'blocks\.\d+\.token_mixer\.weight$', key) for key in backbone)
    dims, counts = (tuple(values[stage] for stage in sorted(values)) for values in (widths, depths))
    mixer = 'single' if single else 'multi'
    for name, arch in architectures.items():
        if (tuple(arch.embed_dims), tuple(arch.depths), arch.token_mixer) == (dims, counts, mixer):
            return name
    dimensions = f'embed_dims={dims}, depths={counts}'
    return f'{dimensions[:_SHOWN]}{"..." if len(dimensions) > _SHOWN else ""}, token_mixer={mixer!r}'
