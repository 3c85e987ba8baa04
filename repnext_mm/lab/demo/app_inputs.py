"""What the page in the browser offers, configs and the checkpoints that go with them, and which images it accepts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from repnext_mm.errors import MissingFileError, UserError

MAX_PIXELS = 4_000_000  # a segmentor of 150 classes holds 2.4 GB of logits for it
MAX_RATIO = 20  # of the sides: a longer strip is scaled to nothing before a network sees it
MAX_FILE = '16mb'  # as gradio writes it
FORMATS = ('JPEG', 'PNG', 'BMP', 'WEBP')
_WEIGHTS = ('.pth', '.safetensors')
_PUBLISHED = re.compile(r'-[0-9a-f]{8}$')  # the start of a digest, which published names end in


class Pair(NamedTuple):
    """A config and a checkpoint of its model."""

    config: Path
    checkpoint: Path


Offer = Mapping[str, Mapping[str, Pair]]
"""A config's name on the page, a checkpoint's name there, and the two files: the page sends names, never paths."""


def given_pairs(paths: Sequence[str | Path]) -> Offer:
    """Configs and checkpoints in turn, as a command line lists them.

    Raises:
        UserError: a file is missing, or one has no partner.
    """
    if len(paths) % 2:
        raise UserError(f"'{paths[-1]}' stands alone: give files in pairs, CONFIG CHECKPOINT [CONFIG CHECKPOINT ...]")
    offer: dict[str, dict[str, Pair]] = {}
    for config, checkpoint in zip(paths[::2], paths[1::2], strict=True):
        for path, what in ((config, 'config'), (checkpoint, 'checkpoint')):
            if not Path(path).is_file():
                raise MissingFileError(f"{what} '{path}' does not exist: give the path of an existing file")
        offer.setdefault(str(config), {})[str(checkpoint)] = Pair(Path(config), Path(checkpoint))
    return offer


def pairs_under(root: str | Path) -> Offer:
    """Every config that lies beside weights, as training leaves them; newest weights first.

    A config and weights of one name, such as ``tools/checkpoint.py fuse`` writes, go with each other only.

    Raises:
        UserError: there is no such folder, or it holds no such pair.
    """
    root = Path(root)
    weights = [path for suffix in _WEIGHTS for path in root.rglob(f'*{suffix}')]
    weights.sort(key=lambda path: (-path.stat().st_mtime, path.name))
    offer: dict[str, dict[str, Pair]] = {}
    for path in weights:
        for config in _configs_of(path, weights):
            name = config.relative_to(root).as_posix()
            offer.setdefault(name, {})[path.name] = Pair(config, path)
    if not offer:
        raise MissingFileError(
            f"no config lies beside a checkpoint under '{root}': train one (make demo-seg), give another folder with "
            '--runs, or give CONFIG CHECKPOINT'
        )
    return offer


def chosen(offer: Offer, config: str, checkpoint: str) -> Pair:
    """The files behind two names chosen on the page.

    Raises:
        UserError: they are not on offer.
    """
    pair = offer.get(config, {}).get(checkpoint)
    if pair is None:
        raise UserError(f"checkpoint '{checkpoint}' of config '{config}' is no longer offered: reload the page")
    return pair


def check_upload(path: str | Path | None) -> Path:
    """The path of an image that is small enough to work on; only its header is read.

    Raises:
        UserError: no file, not an image, or too large; the message shows no local path.
    """
    if path is None:
        raise UserError('no image yet: drop one into the field above')
    name = Path(path).name
    too_many = f'more than {MAX_PIXELS:,} pixels, the most that is accepted here: scale it down'
    try:
        with Image.open(path, formats=FORMATS) as opened:
            width, height = opened.size
    except Image.DecompressionBombError as error:
        raise UserError(f"'{name}' has far {too_many}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"'{name}' cannot be read as an image: give one of {', '.join(FORMATS)}") from error
    if width * height > MAX_PIXELS:
        raise UserError(f"'{name}' is {width} x {height}, {too_many}")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise UserError(
            f"'{name}' is {width} x {height}, but one side may be at most {MAX_RATIO} times the other: crop it"
        )
    return Path(path)


def _configs_of(weights: Path, others: Sequence[Path]) -> list[Path]:
    configs = sorted(weights.parent.glob('*.py'))
    own = [config for config in configs if config.stem == _plain_stem(weights)]
    taken = {_plain_stem(path) for path in others if path.parent == weights.parent}
    return own or [config for config in configs if config.stem not in taken]


def _plain_stem(weights: Path) -> str:
    return _PUBLISHED.sub('', weights.stem)
