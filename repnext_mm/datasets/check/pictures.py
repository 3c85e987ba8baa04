"""Picture files as the training pipelines will see them."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')  # what MMPretrain's CustomDataset takes
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap width and height


def pictures_below(folder: Path) -> list[Path]:
    """Every picture in a folder and in those below it, sorted."""
    return sorted(path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)


def seen_size(path: Path) -> tuple[int, int] | None:
    """(width, height) after the turn that EXIF asks for, as OpenCV loads it; None if it is no picture."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION) in _TURNED
    except (OSError, SyntaxError, ValueError):
        return None
    return (height, width) if turned else (width, height)


def is_readable(path: Path) -> bool:
    """Whether the whole file can be decoded; truncated files cannot."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.draft('RGB', (32, 32))  # JPEG: reads all of the stream, skips most of the arithmetic
            image.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True
