"""What a picture from the browser may be, checked before it is decoded."""

from __future__ import annotations

from pathlib import Path

MAX_PIXELS = 4_000_000  # a segmentor of 150 classes holds 2.4 GB of logits for it
MAX_RATIO = 20  # of the sides: a longer strip is scaled to nothing before a network sees it
MAX_FILE = '16mb'  # as gradio writes it
FORMATS = ('JPEG', 'PNG', 'BMP', 'WEBP')


def check_upload(path: str | Path | None) -> Path:
    """The path of a picture that is small enough to work on; only its header is read.

    Raises:
        ValueError: there is none, it is no picture, or it is too large: one sentence, with no path of this machine.
    """
    from PIL import Image, UnidentifiedImageError

    if path is None:
        raise ValueError('there is no picture yet: drop one into the field above')
    name = Path(path).name
    too_many = f'more than {MAX_PIXELS:,} pixels, the most that is taken here: scale it down'
    try:
        with Image.open(path, formats=FORMATS) as picture:
            width, height = picture.size
    except Image.DecompressionBombError as error:
        raise ValueError(f"'{name}' has far {too_many}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"'{name}' is no picture that can be read: give one of {', '.join(FORMATS)}") from error
    if width * height > MAX_PIXELS:
        raise ValueError(f"'{name}' is {width} x {height}, {too_many}")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(
            f"'{name}' is {width} x {height}, but one side may be at most {MAX_RATIO} times the other: cut it"
        )
    return Path(path)
