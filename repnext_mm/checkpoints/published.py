"""The weights that RepNeXt's authors publish, by name: the one table of their files and of what they report."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePath
from urllib.parse import unquote

from repnext_mm.errors import UserError

RELEASE = 'https://github.com/suous/RepNeXt/releases/download/v1.0'
MIRROR = 'REPNEXT_MM_MIRROR'  # names another address below which the same files are
FOLDER = 'pretrain'  # in the working directory, where the configs look for them


@dataclass(frozen=True)
class Published:
    """One file of the release. Its size is known once it is here: the authors state none."""

    file: str
    holds: str
    reported: Mapping[str, float]  # by metric, in percent
    arch: str | None = None  # None: not a RepNeXt
    crop_pct: float | None = None  # of a classifier: the crop of its evaluation, 224 pixels wide, in the resized image

    @property
    def name(self) -> str:
        return self.file.removesuffix('.tar').rpartition('.')[0]

    @property
    def form(self) -> str:
        """As ``recognize`` calls it."""
        return 'keep_norms' if self.name.endswith('_fused') else 'train'

    @property
    def address(self) -> str:
        return f'{RELEASE}/{self.file}'

    @property
    def source(self) -> str:
        """Where it is downloaded from: the authors' page, or the mirror that ``REPNEXT_MM_MIRROR`` names."""
        return f'{(os.environ.get(MIRROR) or RELEASE).rstrip("/")}/{self.file}'


_DISTILLED = {'m0': 74.2, 'm1': 78.8, 'm2': 80.1, 'm3': 80.7, 'm4': 82.3, 'm5': 83.3}  # top-1 on ImageNet-1K
_STARNET = {'m0': (73.8, 75.4), 'm1': (77.9, 79.7), 'm2': (78.8, 80.6)}  # the same: plain, distilled
_COCO = {'m3': (40.8, 37.8), 'm4': (42.9, 39.1), 'm5': (44.7, 40.7)}  # box AP, mask AP
_ADE20K = {'m3': 40.6, 'm4': 43.3, 'm5': 45.0}  # mIoU
_CONVNEXT = {'baseline_7237': 72.37, 'replaced_7428': 74.28, 'replaced_7419': 74.19}  # top-1 on ImageNet-1K


def _files() -> Iterator[Published]:
    for arch, top1 in _DISTILLED.items():
        holds = 'classifier, ImageNet-1K, RepViT recipe, distilled'
        yield Published(f'repnext_{arch}_distill_300e.pth', holds, {'top-1': top1}, arch, crop_pct=0.875)
        yield Published(
            f'repnext_{arch}_distill_300e_fused.pt', f'{holds}, fused', {'top-1': top1}, arch, crop_pct=0.875
        )
    for arch, (plain, distilled) in _STARNET.items():
        holds = 'classifier, ImageNet-1K, StarNet recipe'
        yield Published(f'repnext_{arch}_sz224_4xbs512_ep300.pth.tar', holds, {'top-1': plain}, arch, crop_pct=0.9)
        yield Published(
            f'repnext_{arch}_sz224_4xbs256_ep300_distill.pth.tar',
            f'{holds}, distilled',
            {'top-1': distilled},
            arch,
            crop_pct=0.9,
        )
    for arch, (box, mask) in _COCO.items():
        yield Published(f'repnext_{arch}_coco.pth', 'Mask R-CNN, COCO', {'box AP': box, 'mask AP': mask}, arch)
    for arch, miou in _ADE20K.items():
        yield Published(f'repnext_{arch}_ade20k.pth', 'Semantic FPN, ADE20K', {'mIoU': miou}, arch)
    for kind, top1 in _CONVNEXT.items():
        yield Published(f'convnext_femto_120e_{kind}.pth', 'ConvNeXt-femto, ImageNet-1K, ablation', {'top-1': top1})


PUBLISHED: dict[str, Published] = {entry.name: entry for entry in _files()}
"""Every weight file of the release by its name, which is that of the file without its suffix."""

_BY_FILE = {entry.file: entry for entry in PUBLISHED.values()}


def published(source: str) -> Published | None:
    """The entry that a name, a file's name, ``pretrain/FILE`` or an address of the release stands for."""
    if source.startswith(f'{RELEASE}/'):
        return _BY_FILE.get(unquote(source.removeprefix(f'{RELEASE}/')))
    path = PurePath(source)
    if path.parent not in (PurePath(), PurePath(FOLDER)):
        return None
    return PUBLISHED.get(path.name) or _BY_FILE.get(path.name)


def similar(source: str) -> str:
    """The end of a sentence about a file that is not there: the published name that may have been meant."""
    near = get_close_matches(PurePath(source).name, [*PUBLISHED, *_BY_FILE], n=1, cutoff=0.8)
    return f', or the published {near[0]!r}' if near else ''


def weights_of(arch: object, weights: str) -> str:
    """What ``weights`` means for an arch: the rest of a published name (``'distill_300e'``), or any other source.

    Raises:
        UserError: it reads like such a rest, and nothing of this name is published for the arch.
    """
    start = f'repnext_{arch}_'
    if f'{start}{weights}' in PUBLISHED:
        return f'{start}{weights}'
    if weights in PUBLISHED or any(sign in weights for sign in '/\\.:') or not weights:
        return weights
    known = [name.removeprefix(start) for name in PUBLISHED if name.startswith(start)]
    raise UserError(
        f'weights={weights!r} are not published for arch {arch!r}: give '
        + (f'one of {", ".join(known)}, or ' if known else '')
        + 'a file, an address or hf-hub:OWNER/NAME'
    )
