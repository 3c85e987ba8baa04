"""Image files as training will see them: read by its own decoder, turned as it turns them."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeVar

import numpy as np

from repnext_mm.data.own.findings import Findings

SUFFIXES = (
    '.jpg',
    '.jpeg',
    '.jpe',
    '.jfif',
    '.png',
    '.webp',
    '.tif',
    '.tiff',
    '.bmp',
    '.dib',
    '.gif',
    '.avif',
    '.jp2',
    '.ppm',
    '.pgm',
    '.pbm',
    '.pnm',
)
GIANT = 'image of more than 178,956,970 pixels (the limit of Pillow): cut it into tiles'
_UNREAD = 'training cannot decode the image (by OpenCV): save it as PNG or JPEG, of 8 bits'
_CUT = 'image file is cut short: copy it again'
_LFS = 'file is a Git LFS pointer, not the image: run `git lfs pull`'
_FLAT = 'training keeps 8 bits of each value, and sees nearly black or white alone: save the image as 8 bits, 0 to 255'
_DEEP = 'training keeps 8 bits of each value'
_ORIENTATION = 0x0112  # the EXIF tag
_EIGHT_BITS = ('1', 'L', 'P', 'RGB', 'RGBA', 'LA', 'PA', 'CMYK', 'YCbCr')
_FLATTEST = 16  # of 255

Item = TypeVar('Item')
Result = TypeVar('Result')


class Seen(NamedTuple):
    """An image in training."""

    size: tuple[int, int] | None  # (width, height) after EXIF's turn; None if it cannot be used
    turned: bool = False  # by EXIF: what is annotated must fit the turned image
    error: str | None = None  # the rule that it breaks
    warning: str | None = None
    detail: str = ''

    def report(self, place: str, findings: Findings) -> None:
        """Add what is to be said about it."""
        place = f'{place} ({self.detail})' if self.detail else place
        if self.error:
            findings.error(self.error, place)
        if self.warning:
            findings.warn(self.warning, place)


class Header(NamedTuple):
    """What Pillow tells without decoding."""

    kind: str  # format and mode
    eight_bits: bool
    oriented: bool
    giant: bool = False


def is_image_name(name: str | PurePath) -> bool:
    """Whether the suffix is one of those that training can decode."""
    return PurePath(name).suffix.lower() in SUFFIXES


def see_all(paths: Iterable[Path]) -> Iterator[Seen]:
    """Every image in turn, decoded on a few threads."""
    return in_parallel(see, paths)


def in_parallel(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results in order, while the decoders' own remarks on standard error are held back."""
    with _quiet_decoders(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        yield from pool.map(work, items)


def sizes_of(paths: Iterable[Path]) -> Iterator[Seen]:
    """Size of every image in turn, from its header where that is enough."""
    return in_parallel(_size_of, paths)


def see(path: Path) -> Seen:
    """Decode one image as ``LoadImageFromFile`` does by default."""
    import cv2
    import mmcv

    try:
        content = path.read_bytes()
    except OSError as error:
        return Seen(None, error='file cannot be opened', detail=str(error.strerror))
    if content.startswith(b'version https://git-lfs'):
        return Seen(None, error=_LFS)
    header = read_header(content)
    if header is not None and header.giant:
        return Seen(None, error=GIANT)
    try:
        image = mmcv.imfrombytes(content) if content else None
    except cv2.error:  # more than its own limit of pixels
        return Seen(None, error=_UNREAD, detail='refused by OpenCV')
    if image is None:
        return Seen(None, error=_UNREAD, detail=_kind(content, header))
    size = (image.shape[1], image.shape[0])
    if _is_cut(content):
        return Seen(size, error=_CUT)
    turned = False
    if header is not None and header.oriented:
        raw = mmcv.imfrombytes(content, flag='color_ignore_orientation')
        turned = raw.shape != image.shape or bool((raw != image).any())
    if header is None or not header.eight_bits:
        values = _unchanged(content)
        if values is not None and values.dtype != 'uint8':
            detail = f'{values.dtype} up to {values.max():g} become 8 bits up to {image.max()}'
            flat = image.max() < _FLATTEST or np.percentile(image, 5) > 255 - _FLATTEST
            return Seen(size, turned, error=_FLAT if flat else None, warning=None if flat else _DEEP, detail=detail)
    return Seen(size, turned)


def read_header(content: bytes) -> Header | None:
    """By Pillow, whatever the name says; None if it does not know the format."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            sixteen = image.format == 'PNG' and content[24:25] == b'\x10'  # mode RGB, though
            oriented = image.getexif().get(_ORIENTATION, 1) != 1
            return Header(f'{image.format} of mode {image.mode}', image.mode in _EIGHT_BITS and not sixteen, oriented)
    except Image.DecompressionBombError:
        return Header('', True, False, giant=True)
    except (OSError, SyntaxError, ValueError):
        return None


def _size_of(path: Path) -> Seen:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.getexif().get(_ORIENTATION, 1) == 1:
                return Seen(image.size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        pass
    return see(path)  # which knows what OpenCV turns, and what it alone can read


def _kind(content: bytes, header: Header | None) -> str:
    if not content:
        return 'an empty file'
    if header is not None:
        return header.kind
    values = _unchanged(content)
    return 'not an image' if values is None else f'{values.dtype} up to {values.max():g}'


def _unchanged(content: bytes) -> Any:
    """The values that are stored, which OpenCV may know without being able to make 8 bits of them; None without any."""
    import cv2
    import mmcv

    try:
        return mmcv.imfrombytes(content, flag='unchanged')
    except cv2.error:
        return None


def _is_cut(content: bytes) -> bool:
    """Whether the end is absent, which older versions of OpenCV fill with gray."""
    if content.startswith(b'\xff\xd8'):
        return content.rfind(b'\xff\xd9') < content.rfind(b'\xff\xda')  # end of image, start of its last scan
    return content.startswith(b'\x89PNG') and b'IEND' not in content


@contextmanager
def _quiet_decoders() -> Iterator[None]:
    import cv2

    opencv: Any = cv2
    log = opencv if hasattr(opencv, 'getLogLevel') else opencv.utils.logging  # the latter from 4.13 on
    level = log.getLogLevel()
    log.setLogLevel(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Pillow's, about sizes and EXIF
            yield
    finally:
        log.setLogLevel(level)
