"""The published architectures as data (paper, table of variants)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Arch:
    """Widths and depths of the four stages.

    ``token_mixer`` is ``'multi'`` for the multi-branch mixers, or ``'single'`` for the E variants' one depthwise
    convolution (11x11 in blocks, 7x7 of stride 2 between stages).
    """

    embed_dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    mlp_ratio: float = 2
    token_mixer: str = 'multi'

    def __post_init__(self) -> None:
        for name, values in (('embed_dims', self.embed_dims), ('depths', self.depths)):
            if not isinstance(values, tuple) or not all(type(value) is int for value in values):
                raise ValueError(f'{name} {values!r} must be whole numbers, one per stage')
        if len(self.embed_dims) != 4 or len(self.depths) != 4:
            raise ValueError(f'embed_dims {self.embed_dims} and depths {self.depths} must have one entry per stage: 4')
        if any(a * 2 != b for a, b in zip(self.embed_dims, self.embed_dims[1:], strict=False)):
            raise ValueError(f'embed_dims {self.embed_dims} must double from stage to stage')
        if self.embed_dims[0] <= 0 or self.embed_dims[0] % 4:
            raise ValueError(f'embed_dims {self.embed_dims} must be positive multiples of 4: four scales share them')
        if min(self.depths) < 1:
            raise ValueError(f'depths {self.depths} must be at least 1')
        if type(self.mlp_ratio) not in (int, float) or not 1 <= self.mlp_ratio * self.embed_dims[0] < math.inf:
            raise ValueError(f'mlp_ratio {self.mlp_ratio!r} must be a positive number that leaves hidden channels')
        if self.token_mixer not in ('multi', 'single'):
            raise ValueError(f"token_mixer {self.token_mixer!r} must be 'multi' or 'single'")


ARCHITECTURES: dict[str, Arch] = {
    'm0': Arch((40, 80, 160, 320), (2, 2, 9, 1)),
    'm1': Arch((48, 96, 192, 384), (3, 3, 15, 2)),
    'm2': Arch((56, 112, 224, 448), (3, 3, 15, 2)),
    'm3': Arch((64, 128, 256, 512), (3, 3, 13, 2)),
    'm4': Arch((64, 128, 256, 512), (5, 5, 25, 4)),
    'm5': Arch((80, 160, 320, 640), (7, 7, 35, 2)),
    'm0e': Arch((40, 80, 160, 320), (2, 2, 9, 1), token_mixer='single'),
    'm1e': Arch((48, 96, 192, 384), (3, 3, 15, 2), token_mixer='single'),
    'm2e': Arch((56, 112, 224, 448), (3, 3, 15, 2), token_mixer='single'),
}


def resolve_arch(arch: str | Mapping[str, Any] | Arch) -> Arch:
    """The architecture of a published name, or of a dict with the fields of ``Arch``.

    Raises:
        ValueError: an unknown name or field, or values that make no RepNeXt.
    """
    if isinstance(arch, Arch):
        return arch
    if isinstance(arch, str):
        if arch not in ARCHITECTURES:
            raise ValueError(f'unknown arch {arch!r}: choose one of {", ".join(ARCHITECTURES)}, or give a dict')
        return ARCHITECTURES[arch]
    if not isinstance(arch, Mapping):
        raise ValueError(f'arch must be a name or a dict, not {type(arch).__name__}')
    fields = dict(arch)
    unknown = set(fields) - {'embed_dims', 'depths', 'mlp_ratio', 'token_mixer'}
    missing = {'embed_dims', 'depths'} - set(fields)
    if unknown or missing:
        raise ValueError(
            f'arch dict with fields {sorted(fields)}: embed_dims and depths are needed, mlp_ratio and token_mixer '
            'are optional, and nothing else is known'
        )
    for key in ('embed_dims', 'depths'):
        fields[key] = tuple(fields[key]) if isinstance(fields[key], list | tuple) else fields[key]
    return Arch(**fields)
