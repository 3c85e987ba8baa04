"""A user's image file, made fit for the libraries that read and draw on it."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmengine.logging import print_log

from repnext_mm.errors import MissingFileError, UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.jp2', '.pgm', '.ppm', '.tif', '.tiff', '.webp')
MAX_PIXELS = 8_000_000  # a segmentor of 150 classes holds 5 GB of scores for as many


def found_images(given: Sequence[str | Path]) -> list[Path]:
    """The image files that files, folders and patterns stand for, each once: those of a folder by suffix, sorted.

    Raises:
        MissingFileError: there is no such file or folder, or nothing fits a pattern.
        UserError: a folder holds no image.
    """
    found: list[Path] = []
    for each in given:
        path, pattern = Path(each), str(each)
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
            if not files:
                raise UserError(
                    f"folder '{path}' holds no image ({', '.join(SUFFIXES)}): give a folder of images, or a pattern "
                    f"such as '{path}/*/*.jpg' for those in its folders"
                )
            found += files
        elif not path.exists() and any(sign in pattern for sign in '*?['):
            files = sorted(file for file in map(Path, glob(pattern, recursive=True)) if file.is_file())
            if not files:
                raise MissingFileError(f"nothing fits the pattern '{pattern}': relative ones start at {os.getcwd()}")
            found += files
        else:
            found.append(existing(path))
    return list(dict.fromkeys(found))


def existing(image: str | Path) -> Path:
    """The path of an image file.

    Raises:
        MissingFileError: there is no such file.
        UserError: it is a folder.
    """
    if os.path.isdir(image):
        raise UserError(f"image '{image}' is a folder: give one image file")
    if not os.path.isfile(image):
        raise MissingFileError(f"image '{image}' does not exist: give the path of an image file")
    return Path(image)


@contextmanager
def renamed(image: Path, name: str) -> Iterator[Path]:
    """The file under a name: itself, or a copy for the time of the context."""
    if image.name == name:
        yield image
        return
    with TemporaryDirectory() as folder:
        yield Path(shutil.copy(image, Path(folder) / name))


@contextmanager
def fit_image(image: str | Path) -> Iterator[Path]:
    """A whole image that OpenCV reads and writes: the file itself, or a copy for the time of the context.

    Copies are made of images with more than ``MAX_PIXELS``, which are scaled down, and of formats that OpenCV does
    not know or cannot write (the first frame, with ``.png`` for a suffix).

    Raises:
        MissingFileError: there is no such file.
        UserError: it is not an image, is corrupt, or unpacks to far more than its size.
    """
    import cv2

    image = existing(image)
    _check_whole(image)
    try:
        pixels: Any = cv2.imread(str(image)) if cv2.haveImageReader(str(image)) else None
    except cv2.error:  # of a corrupt header
        pixels = None
    writable = cv2.haveImageWriter(image.name)
    foreign = pixels is None
    if foreign:
        pixels = _decoded_otherwise(image)
    height, width = pixels.shape[:2]
    if not foreign and writable and height * width <= MAX_PIXELS:
        yield image
        return
    if height * width > MAX_PIXELS:
        scale = (MAX_PIXELS / (height * width)) ** 0.5
        size = max(1, int(width * scale)), max(1, int(height * scale))
        print_log(
            f"image '{image}' of {width}x{height} pixels is scaled down to {size[0]}x{size[1]}: results of that "
            'size would need too much memory',
            logger='current',
            level=logging.WARNING,
        )
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    with TemporaryDirectory() as folder:
        copy = Path(folder) / (image.name if writable else f'{image.stem or image.name}.png')
        if not cv2.imwrite(str(copy), pixels):
            raise UserError(f"image '{image}' cannot be written as {copy.suffix}: give a JPEG or PNG file")
        yield copy


def _check_whole(image: Path) -> None:
    """Refuse what decodes in part only, which OpenCV fills with gray, and what would fill the memory."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about odd metadata, and sizes that are allowed here
            with Image.open(image) as opened:
                opened.draft('RGB', (32, 32))  # JPEG: reads all of the stream, skips most of the arithmetic
                opened.load()
    except UnidentifiedImageError:
        pass  # OpenCV may know it
    except Image.DecompressionBombError as error:
        raise UserError(f"image '{image}' has far too many pixels: scale it down") from error
    except MemoryError as error:
        raise UserError(f"image '{image}' needs more memory than there is: scale it down") from error
    except Exception as error:  # decoders raise whatever they meet in a corrupt file
        raise UserError(f"image '{image}' cannot be read, it is corrupt ({error}): download it again") from error


def _decoded_otherwise(image: Path) -> Any:
    """(H, W, 3) in BGR, of a format that OpenCV does not know."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with Image.open(image) as opened:
                return np.ascontiguousarray(np.asarray(ImageOps.exif_transpose(opened).convert('RGB'))[..., ::-1])
    except Exception as error:  # see above
        raise UserError(f"image '{image}' cannot be read as an image: give a JPEG or PNG file") from error
