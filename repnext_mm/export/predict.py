"""Run an exported file on images with numpy, OpenCV or Pillow, and its runtime: no torch, no mm package.

What it needs to know (classes, colors, sizes, thresholds) travels inside the file, or beside it. This module imports
``openers`` and no other of ours, so both can be copied beside an exported file: ``python predict.py FILE IMAGE``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import glob
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING or __package__:
    from repnext_mm.export.openers import (
        OPENERS,
        SUFFIXES,
        Array,
        Run,
        UserError,
        format_by_name,
        is_there,
        open_runtime,
    )
else:  # copied, or started by its path
    from openers import OPENERS, SUFFIXES, Array, Run, UserError, format_by_name, is_there, open_runtime

IMAGES = ('.bmp', '.jpeg', '.jpg', '.png', '.webp')
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An opened file."""

    about: dict[str, Any]  # see ``repnext_mm.export.graphs.Part.about``
    run: Run  # from the network's input (1, 3, H, W) to its outputs


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was found on an image of ``(H, W)``; of the arrays, those of the task."""

    boxes: Array | None = None  # (n, 4), x1 y1 x2 y2 in pixels of the image
    scores: Array | None = None  # (n,) of boxes, (classes,) of an image
    labels: Array | None = None  # (n,)
    masks: Array | None = None  # (n, H, W), bool
    classes: Array | None = None  # (H, W), the class of each pixel


def open_file(path: str | Path, *, threads: int | None = None, streams: int = 1) -> Exported:
    """Open an exported file in its runtime, in float32.

    Args:
        path: what ``repnext export`` wrote; its end names the format.
        threads: of one run; None leaves it to the runtime.
        streams: runs at the same time, from as many threads: more images per second, each of them later.

    Raises:
        UserError: there is no such file, it is of another kind, or its runtime is not installed.
    """
    format = format_by_name(path)
    if format is None or format not in OPENERS:
        known = ', '.join(end for format in OPENERS for end in SUFFIXES[format])
        raise UserError(f"'{path}' does not run here: give what repnext export wrote, one of {known}")
    if not is_there(path, format):
        raise UserError(f"there is no file '{path}': repnext export writes one")
    if streams > 1 and threads is None:
        threads = max(1, (os.cpu_count() or 1) // streams)
    try:
        run, about = open_runtime(path, format, threads=threads, streams=streams)
    except ModuleNotFoundError as error:
        raise UserError(f"'{path}' needs {error.name}, which is not installed: pip install {error.name}") from error
    return Exported(about=about, run=run)


def predict(exported: Exported, image: Array) -> Prediction:
    """From an image ``(H, W, 3)``, RGB, uint8, to what is on it.

    Raises:
        UserError: the file does not say what its outputs mean, or takes another size.
    """
    about = exported.about
    if about.get('task') not in _FINISH:
        raise UserError(
            'the file does not say what its outputs mean: export a detector, segmentor or classifier by its config'
        )
    pixels, scale = prepared(image, about['steps'])
    check_size(pixels, about)
    return finished(about, exported.run(network_input(pixels, about)), size=image.shape[:2], scale=scale)


def check_size(pixels: Array, about: dict[str, Any]) -> None:
    """A file of one size gets an image of that size.

    Raises:
        UserError: it gets another.
    """
    if about.get('size', [*pixels.shape[:2]]) != [*pixels.shape[:2]]:
        one, other = ('x'.join(map(str, size)) for size in (pixels.shape[:2], about['size']))
        raise UserError(
            f'the image is {one} after the steps of the test pipeline, and the file takes {other} alone: give images '
            f'of another shape, or export with --shape 1 3 {one.replace("x", " ")}, or without --static'
        )


def finished(
    about: dict[str, Any], outputs: Sequence[Array], *, size: tuple[int, ...], scale: tuple[float, float]
) -> Prediction:
    """From the outputs of a network to what is on an image of ``(H, W)`` that was resized by ``scale``, x and y."""
    return _FINISH[about['task']](about, outputs, (size[0], size[1]), scale)


def prepared(image: Array, steps: Sequence[dict[str, Any]]) -> tuple[Array, tuple[float, float]]:
    """The image as the test pipeline of the config sizes it, and by how much it was scaled along x and y."""
    scale = (1.0, 1.0)
    for step in steps:
        height, width = image.shape[:2]
        if 'resize' in step:
            new = list(step['resize'])
            if step['keep_ratio']:
                factor = min(max(new) / max(height, width), min(new) / min(height, width))
                new = [int(width * factor + 0.5), int(height * factor + 0.5)]
            image = _resized(image, new[0], new[1])
            scale = (new[0] / width, new[1] / height)
        elif 'short_edge' in step:
            edge = step['short_edge']
            new = [edge, int(edge * height / width)] if width < height else [int(edge * width / height), edge]
            image = _resized(image, new[0], new[1])
        elif 'crop' in step:
            high, wide = step['crop']
            top, left = (max(0, round((have - want) / 2)) for have, want in ((height, high), (width, wide)))
            image = image[top : top + high, left : left + wide]
        elif 'pad' in step:
            wide, high = step['pad']
            whole = np.empty((max(high, height), max(wide, width), 3), image.dtype)
            whole[:] = step['value']
            whole[:height, :width] = image
            image = whole
    return image, scale


def network_input(pixels: Array, about: dict[str, Any]) -> Array:
    """``(H, W, 3)``, RGB, to ``(1, 3, H, W)``, normalized where the graph does not do it itself."""
    image = pixels.astype(about['dtype'])
    if not about['pixels']:
        image = image if about['rgb'] else image[..., ::-1]
        image = (image - np.float32(about['mean'])) / np.float32(about['std'])
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


def crops_on_image(masks: Array, boxes: Array, size: tuple[int, int], threshold: float = 0.5) -> Array:
    """``(n, h, w)`` masks of boxes, each resized to its box, as booleans on an image: ``(n, H, W)``."""
    whole = np.zeros((len(masks), *size), bool)
    for mask, box, out in zip(masks, boxes, whole, strict=True):
        (left, right), (top, bottom) = (
            (max(math.floor(low) - 1, 0), max(min(math.ceil(high) + 1, limit), 0))
            for low, high, limit in ((box[0], box[2], size[1]), (box[1], box[3], size[0]))
        )
        if left >= right or top >= bottom:
            continue
        rows = _inside(np.arange(top, bottom), box[1], box[3], mask.shape[0])
        columns = _inside(np.arange(left, right), box[0], box[2], mask.shape[1])
        out[top:bottom, left:right] = rows @ mask @ columns.T >= threshold
    return whole


def maps_on_image(
    maps: Array, size: tuple[int, int], *, stride: int = 8, scale: tuple[float, float] = (1, 1), threshold: float = 0.5
) -> Array:
    """``(n, h, w)`` logits of whole images, one in ``stride`` pixels, as booleans on the image: ``(n, H, W)``."""
    spread = []
    for small, limit, factor in zip(maps.shape[1:], size, (scale[1], scale[0]), strict=True):
        large = small * stride
        spread.append((bilinear(math.ceil(large * (1 / factor)), large) @ bilinear(large, small))[:limit])
    return spread[0] @ maps @ spread[1].T > math.log(threshold / (1 - threshold))


def draw(image: Array, prediction: Prediction, about: dict[str, Any], *, threshold: float = 0.3) -> Array:
    """The image with what was found on it, as a new array."""
    drawn = image.copy()
    colors = _colors(about)
    if prediction.classes is not None:
        shown = (prediction.classes < len(colors))[..., None]
        return np.where(shown, drawn // 2 + colors[prediction.classes % len(colors)] // 2, drawn).astype(np.uint8)
    if prediction.boxes is None:
        return _written(
            drawn, 4, 4, ', '.join(f'{name} {score:.2f}' for name, score in top(prediction, about)), (0, 0, 0)
        )
    for at in np.flatnonzero(prediction.scores >= threshold)[::-1]:  # type: ignore[operator]
        label = int(prediction.labels[at])  # type: ignore[index]
        color = colors[label % len(colors)]
        if prediction.masks is not None:
            drawn[prediction.masks[at]] = drawn[prediction.masks[at]] // 2 + color // 2
        height, width = drawn.shape[:2]
        x1, y1, x2, y2 = np.clip(np.round(prediction.boxes[at]), 0, [width - 1, height - 1] * 2).astype(int)
        drawn[y1 : y2 + 1, [x1, x2]] = color
        drawn[[y1, y2], x1 : x2 + 1] = color
        text = f'{_name(about, label)} {prediction.scores[at]:.2f}'  # type: ignore[index]
        drawn = _written(drawn, x1 + 2, y1 + 1, text, color)
    return drawn


def top(prediction: Prediction, about: dict[str, Any], count: int = 5) -> list[tuple[str, float]]:
    """The top classes of an image, with their scores."""
    scores = prediction.scores
    assert scores is not None
    return [(_name(about, int(at)), float(scores[at])) for at in np.argsort(-scores, kind='stable')[:count]]


def coco_results(prediction: Prediction, image_id: Any) -> list[dict[str, Any]]:
    """Detections as COCO's result files have them: boxes as x, y, width, height, masks as run lengths.

    ``category_id`` is the number of the class, from 0, as in the file's ``classes``.
    """
    results = []
    assert prediction.boxes is not None and prediction.scores is not None and prediction.labels is not None
    for at, ((x1, y1, x2, y2), score, label) in enumerate(
        zip(prediction.boxes.tolist(), prediction.scores.tolist(), prediction.labels.tolist(), strict=True)
    ):
        item = {'image_id': image_id, 'category_id': label, 'bbox': [x1, y1, x2 - x1, y2 - y1], 'score': score}
        if prediction.masks is not None:
            item['segmentation'] = run_lengths(prediction.masks[at])
        results.append(item)
    return results


def run_lengths(mask: Array) -> dict[str, Any]:
    """A boolean mask ``(H, W)`` as COCO's compressed run lengths: column by column, differences, six bits a letter."""
    flat = np.concatenate([[False], mask.T.reshape(-1), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    if counts[-1] == 0:
        counts.pop()
    letters = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        while True:
            bits, value = value & 0x1F, value >> 5
            more = value != (-1 if bits & 0x10 else 0)
            letters.append(chr((bits | (0x20 if more else 0)) + 48))
            if not more:
                break
    return {'size': list(mask.shape), 'counts': ''.join(letters)}


def read_image(path: str | Path) -> Array:
    """An image file as ``(H, W, 3)``, RGB, uint8, turned as its camera was held.

    Raises:
        UserError: it cannot be read.
    """
    image = None
    if _cv2() is not None:
        with suppress(_cv2().error):
            image = _cv2().imdecode(np.frombuffer(Path(path).read_bytes(), np.uint8), _cv2().IMREAD_COLOR)
        image = None if image is None else image[..., ::-1]
    else:
        from PIL import Image, ImageOps

        with suppress(OSError), Image.open(path) as file:
            image = np.array(ImageOps.exif_transpose(file).convert('RGB'))
    if image is None:
        raise UserError(f"'{path}' cannot be read as an image: give a file such as {', '.join(IMAGES)}")
    return np.ascontiguousarray(image)


def write_image(path: str | Path, image: Array) -> None:
    """Write RGB pixels, or ``(H, W)`` numbers, as the file's name says."""
    if _cv2() is not None:
        _cv2().imwrite(str(path), image if image.ndim == 2 else image[..., ::-1])
    else:
        from PIL import Image

        Image.fromarray(image).save(path)


def images_in(source: str | Path) -> list[Path]:
    """An image itself, those of a folder by name, or those that fit a pattern such as ``'in/*.jpg'``.

    Raises:
        UserError: there is none.
    """
    if any(sign in str(source) for sign in '*?[') and not os.path.exists(source):
        found = [Path(name) for name in sorted(glob(str(source), recursive=True)) if os.path.isfile(name)]
        if not found:
            raise UserError(f"nothing fits the pattern '{source}': relative ones start at {os.getcwd()}")
        return found
    source = Path(source)
    found = [source] if source.is_file() else sorted(p for p in source.glob('*') if p.suffix.lower() in IMAGES)
    if not found:
        raise UserError(f"'{source}' is not an image, a video or a folder of {', '.join(IMAGES)}: give one of these")
    return found


def free_names(names: Iterable[str]) -> list[str]:
    """Each file name, or ``STEM_2.SUFFIX`` and so on where an earlier one has taken it."""
    taken: dict[str, None] = {}
    for name in names:
        path, number = Path(name), 1
        while name in taken:
            number += 1
            name = f'{path.stem}_{number}{path.suffix}'
        taken[name] = None
    return list(taken)


def video_names(sources: Iterable[str | Path]) -> list[str]:
    """What stands before ``.avi`` in the name of each video's or camera's result, and in those of its frames."""
    names = (f'camera_{source}' if str(source).isdigit() else Path(source).stem for source in sources)
    return [Path(name).stem for name in free_names(f'{name}.avi' for name in names)]


def image_ids(sources: Sequence[Path]) -> list[str]:
    """What COCO results call each image: the file's name, or its path as given where several have that name."""
    count = Counter(source.name for source in sources)
    return [source.name if count[source.name] == 1 else str(source) for source in sources]


def spare(sources: Iterable[str | Path], folder: str | Path, names: Iterable[str], option: str) -> None:
    """Refuse to write files of these names into a folder where one would replace a source.

    Raises:
        UserError: one would.
    """
    given = {os.path.realpath(source) for source in sources}
    for name in names:
        if os.path.realpath(os.path.join(folder, name)) in given:
            raise UserError(
                f"'{os.path.join(folder, name)}' was given to be read and would be replaced: choose another {option}"
            )


def is_video(source: str | Path) -> bool:
    """Whether it is the file of a video by its suffix, or the number of a camera."""
    return str(source).isdigit() or Path(source).suffix.lower() in VIDEOS


class Video:
    """The frames of a video file or of a camera, ``(H, W, 3)`` in RGB; a context that closes it.

    Raises:
        UserError: OpenCV is not installed or cannot open it.
    """

    def __init__(self, source: str | Path) -> None:
        cv2 = _cv2()
        if cv2 is None:
            raise UserError(f"'{source}' needs OpenCV to be read as a video: pip install opencv-python-headless")
        camera = str(source).isdigit()
        if not camera and not os.path.isfile(source):
            raise UserError(f"there is no video '{source}': give a file, or the number of a camera")
        log = cv2 if hasattr(cv2, 'getLogLevel') else cv2.utils.logging  # the latter from OpenCV 4.13 on
        level = log.getLogLevel()
        log.setLogLevel(0)  # its own remarks about what it cannot open
        self._opened = cv2.VideoCapture(int(source) if camera else str(source))  # type: ignore[arg-type]
        log.setLogLevel(level)
        if not self._opened.isOpened():
            kind = 'camera' if camera else 'video'
            raise UserError(f"{kind} '{source}' cannot be opened by OpenCV: give another, or a folder of its frames")
        self.rate = self._opened.get(cv2.CAP_PROP_FPS) or 25.0  # frames per second; some do not say
        self.live = camera
        self.frames = None if camera else max(0, int(self._opened.get(cv2.CAP_PROP_FRAME_COUNT))) or None

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.release()

    def __iter__(self) -> Iterator[Array]:
        while True:
            there, frame = self._opened.read()
            if not there:
                return
            yield np.ascontiguousarray(frame[..., ::-1])


class VideoFile:
    """Writes frames ``(H, W, 3)`` in RGB to an .avi (Motion JPEG, which every OpenCV can write)."""

    def __init__(self, path: str | Path, rate: float) -> None:
        self.path, self._rate = Path(path), rate
        self._opened: Any = None

    def write(self, frame: Array) -> None:
        """Add a frame; the first decides the size.

        Raises:
            UserError: the file cannot be written.
        """
        cv2 = _cv2()
        if self._opened is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kind, size = cv2.VideoWriter_fourcc(*'MJPG'), (frame.shape[1], frame.shape[0])
            self._opened = cv2.VideoWriter(str(self.path), kind, self._rate, size)
            if not self._opened.isOpened():
                raise UserError(f"video '{self.path}' cannot be written: give another --out-dir, or --no-draw")
        self._opened.write(np.ascontiguousarray(frame[..., ::-1]))

    def close(self) -> None:
        """Finish the file."""
        if self._opened is not None:
            self._opened.release()


@contextmanager
def copied_video(source: str | Path, path: str | Path) -> Iterator[tuple[Video, VideoFile, Progress]]:
    """A video or camera, the .avi that its frames go to, and the bar to step; Ctrl-C ends a camera.

    Raises:
        UserError: see ``Video``; or there was no frame.
    """
    with Video(source) as video:
        out, bar = VideoFile(path, video.rate), Progress(video.frames)
        try:
            yield video, out, bar
        except KeyboardInterrupt:
            if not video.live:
                raise
        finally:
            out.close()
            bar.close()
    if not bar.count:
        raise UserError(f"'{source}' has no frame that OpenCV can read: give another video")


def class_map(prediction: Prediction, size: tuple[int, int], *, threshold: float = 0.3) -> Array:
    """``(H, W)``, uint8: the class of each pixel; of detectors its number and 1, 0 where nothing is.

    Raises:
        UserError: the model has no masks, or a class does not fit in eight bits.
    """
    if prediction.classes is not None:
        return _in_eight_bits(prediction.classes)
    if prediction.masks is None or prediction.scores is None or prediction.labels is None:
        raise UserError('--masks is for models with masks: omit it')
    found = np.zeros(size, np.int64)
    for at in np.flatnonzero(prediction.scores >= threshold)[::-1]:  # the surest last, on top
        found[prediction.masks[at]] = int(prediction.labels[at]) + 1
    return _in_eight_bits(found)


def _in_eight_bits(classes: Array) -> Array:
    if classes.size and classes.max() > np.iinfo(np.uint8).max:
        raise UserError(f'--masks are images of eight bits, and {classes.max()} does not fit: omit it')
    return classes.astype(np.uint8)


def predictions_of(
    exported: Exported, images: Iterable[tuple[str, Array]], *, streams: int = 1
) -> Iterator[tuple[str, Array, Prediction]]:
    """Each name, its pixels and what is on them, in order, ``streams`` at the same time."""

    def one(item: tuple[str, Array]) -> tuple[str, Array, Prediction]:
        return *item, predict(exported, item[1])

    if streams == 1:
        yield from map(one, images)
        return
    rest = iter(images)
    with ThreadPoolExecutor(streams) as pool:
        while some := list(islice(rest, 8 * streams)):  # not all images in memory at once
            yield from pool.map(one, some)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of ``repnext predict``."""
    parser.add_argument('file', help='what repnext export wrote: .onnx, .xml, .tflite, .mnn, ...')
    parser.add_argument(
        'images', nargs='+', help="images, folders, quoted patterns ('in/*.jpg'), videos, or the number of a camera"
    )
    parser.add_argument(
        '--out-dir', default='predictions', help='for images and videos with what was found (default: %(default)s)'
    )
    parser.add_argument(
        '--out',
        '--coco',
        dest='coco',
        metavar='FILE',
        help="write detections as COCO results; image_id is the file's name (its path where two share it), of a frame "
        'NAME_000000',
    )
    parser.add_argument('--masks', metavar='DIR', help='write the class of each pixel as PNG (detectors: plus 1)')
    parser.add_argument('--no-draw', action='store_true', help='draw nothing')
    parser.add_argument('--threshold', type=float, default=0.3, help='least score to draw (default: %(default)s)')
    parser.add_argument('--threads', type=int, help='CPU threads of one run (default: chosen by the runtime)')
    parser.add_argument(
        '--streams', '--batch-size', type=int, default=1, help='images at the same time (default: %(default)s)'
    )


def run(args: argparse.Namespace) -> None:
    """The command ``repnext predict``.

    Raises:
        UserError: an argument or file cannot be used.
    """
    if args.streams < 1 or (args.threads is not None and args.threads < 1):
        raise UserError(f'--streams {args.streams} and --threads {args.threads} compute nothing: give at least 1')
    videos = list(dict.fromkeys(source for source in args.images if is_video(source)))
    files = [file for source in args.images if not is_video(source) for file in images_in(source)]
    exported = open_file(args.file, threads=args.threads, streams=args.streams)
    task = exported.about.get('task')
    if args.coco and task not in (None, 'detection'):
        raise UserError('--out is for detectors: omit it')
    if args.masks and task == 'classification':
        raise UserError('--masks is for models with masks: omit it')
    sources, clips = list(dict.fromkeys(files)), dict(zip(videos, video_names(videos), strict=True))
    names, masks = free_names(file.name for file in sources), free_names(f'{file.stem}.png' for file in sources)
    if not args.no_draw:
        spare(sources, args.out_dir, names, '--out-dir')
        spare(videos, args.out_dir, (f'{name}.avi' for name in clips.values()), '--out-dir')
    if args.masks:
        spare(sources, args.masks, masks, '--masks')
    results: list[dict[str, Any]] = []
    bar = Progress(len(sources) or None)
    pixels = ((str(file), read_image(file)) for file in sources)
    found = predictions_of(exported, pixels, streams=args.streams)
    for name, mask, image_id, (_, image, prediction) in zip(names, masks, image_ids(sources), found, strict=True):
        drawn = _keep(image_id, mask, image, prediction, exported.about, args, results)
        if drawn is not None:
            write_image(_in(args.out_dir) / name, drawn)
        if len(sources) == 1 and not videos:
            print(_described(prediction, exported.about, args.threshold))  # noqa: T201
        else:
            bar.step()
    bar.close()
    for source, clip in clips.items():
        with copied_video(source, Path(args.out_dir, f'{clip}.avi')) as (video, out, bar):
            frames = ((f'{clip}_{number:06}', frame) for number, frame in enumerate(video))
            for name, image, prediction in predictions_of(exported, frames, streams=args.streams):
                drawn = _keep(name, f'{name}.png', image, prediction, exported.about, args, results)
                if drawn is not None:
                    out.write(drawn)
                bar.step()
    if args.coco:
        Path(args.coco).write_text(json.dumps(results))


def _keep(
    image_id: str,
    mask: str,
    image: Array,
    prediction: Prediction,
    about: dict[str, Any],
    args: argparse.Namespace,
    results: list[dict[str, Any]],
) -> Array | None:
    """Add to the results, write the masks; returns the image with what was found, unless nothing is drawn."""
    if args.coco:
        results += coco_results(prediction, image_id)
    if args.masks:
        size = (image.shape[0], image.shape[1])
        write_image(_in(args.masks) / mask, class_map(prediction, size, threshold=args.threshold))
    return None if args.no_draw else draw(image, prediction, about, threshold=args.threshold)


def _in(folder: str | Path) -> Path:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


class Progress:
    """Progress on standard error, with images per second; ``total`` is None where nobody knows it."""

    def __init__(self, total: int | None) -> None:
        self.total, self.count, self._started = total, 0, time.perf_counter()

    def step(self) -> None:
        """One more is done."""
        self.count += 1
        if sys.stderr.isatty():
            self._show('')

    def close(self) -> None:
        """Show the last state and end the line."""
        if self.count:
            self._show('\n')

    def _show(self, end: str) -> None:
        rate = self.count / (time.perf_counter() - self._started)
        bar = '' if self.total is None else f'[{"#" * min(20, 20 * self.count // self.total):20}] '
        of = '' if self.total is None else f'/{self.total}'
        print(f'\r{bar}{self.count}{of} images, {rate:.1f} a second', end=end, file=sys.stderr)  # noqa: T201


def _described(prediction: Prediction, about: dict[str, Any], threshold: float) -> str:
    if prediction.classes is not None:
        numbers, counts = np.unique(prediction.classes, return_counts=True)
        found = [
            f'{_name(about, int(at))} {100 * n / prediction.classes.size:.1f} %'
            for at, n in zip(numbers, counts, strict=True)
        ]
    elif prediction.boxes is None:
        found = [f'{name} {score:.3f}' for name, score in top(prediction, about)]
    else:
        found = [
            f'{_name(about, label)} {score:.2f} at {", ".join(f"{x:.0f}" for x in box)}'
            for box, score, label in zip(prediction.boxes, prediction.scores, prediction.labels, strict=True)  # type: ignore[arg-type]
            if score >= threshold
        ]
    return '\n'.join(found) or f'nothing above {threshold}'


def _finish_detection(
    about: dict[str, Any], outputs: Sequence[Array], size: tuple[int, int], scale: tuple[float, float]
) -> Prediction:
    boxes, scores, labels = outputs[:3]
    boxes = boxes / np.array([*scale, *scale], np.float32)
    masks = None
    if len(outputs) > 3 and about['masks'] == 'crops':
        masks = crops_on_image(outputs[3], boxes, size, about['mask_threshold'])
    elif len(outputs) > 3:
        masks = maps_on_image(
            outputs[3], size, stride=about['mask_stride'], scale=scale, threshold=about['mask_threshold']
        )
    return Prediction(boxes=boxes, scores=scores, labels=labels, masks=masks)


def _finish_segmentation(
    about: dict[str, Any], outputs: Sequence[Array], size: tuple[int, int], scale: tuple[float, float]
) -> Prediction:
    maps = _on_image(outputs[0][0], size, about['align_corners'])
    best = next(maps)
    if len(outputs[0][0]) == 1:  # one class against the background
        return Prediction(
            classes=(best > math.log(about['mask_threshold'] / (1 - about['mask_threshold']))).astype(int)
        )
    classes = np.zeros(size, int)
    for label, logits in enumerate(maps, start=1):
        classes[logits > best] = label
        best = np.maximum(best, logits)
    return Prediction(classes=classes)


def _on_image(maps: Array, size: tuple[int, int], align_corners: bool) -> Iterator[Array]:
    """Each of ``(n, h, w)`` maps on an image of ``(H, W)``, as torch's bilinear interpolation has it; one at a time."""
    if maps.shape[1:] == size:
        yield from maps
        return
    (top, bottom, down), (left, right, along) = (
        _neighbors(new, old, align_corners) for new, old in zip(size, maps.shape[1:], strict=True)
    )
    for values in maps:
        rows = values[top]
        rows += down[:, None] * (values[bottom] - rows)
        whole = rows.take(left, 1)
        whole += along * (rows.take(right, 1) - whole)
        yield whole


def _finish_classification(
    about: dict[str, Any], outputs: Sequence[Array], size: tuple[int, int], scale: tuple[float, float]
) -> Prediction:
    logits = outputs[0][0].astype(np.float64)
    exponents = np.exp(logits - logits.max())
    return Prediction(scores=exponents / exponents.sum())


_FINISH: dict[str, Callable[..., Prediction]] = {
    'detection': _finish_detection,
    'segmentation': _finish_segmentation,
    'classification': _finish_classification,
}


def bilinear(new: int, old: int, align_corners: bool = False) -> Array:
    """``(new, old)``: what torch's bilinear interpolation does along one axis, as a matrix."""
    low, high, share = _neighbors(new, old, align_corners)
    weights = np.zeros((new, old), np.float32)
    weights[np.arange(new), low] += 1 - share
    weights[np.arange(new), high] += share
    return weights


def _neighbors(new: int, old: int, align_corners: bool) -> tuple[Array, Array, Array]:
    """Between which two of ``old`` values each of ``new`` ones lies, and the share of the second."""
    if align_corners:
        at = np.arange(new) * ((old - 1) / max(new - 1, 1))
    else:
        at = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0)
    low = np.minimum(at.astype(int), old - 1)
    return low, np.minimum(low + 1, old - 1), (at - low).astype(np.float32)


def _inside(pixels: Array, low: float, high: float, count: int) -> Array:
    """``(pixels, count)``: interpolation between ``count`` values spread from ``low`` to ``high``, zero outside."""
    at = (pixels + 0.5 - low) / max(high - low, 1e-12) * count - 0.5
    return np.maximum(1 - np.abs(at[:, None] - np.arange(count)), 0).astype(np.float32)


def _resized(image: Array, width: int, height: int) -> Array:
    if _cv2() is not None:  # as mmcv does
        return _cv2().resize(image, (width, height), interpolation=_cv2().INTER_LINEAR)
    from PIL import Image

    # reducing_gap and antialiasing make Pillow's smaller images smoother than those that the network was tested with
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _written(image: Array, x: int, y: int, text: str, color: Any) -> Array:
    if _cv2() is not None:
        place = (int(x), int(y) + 10)
        return _cv2().putText(image, text, place, _cv2().FONT_HERSHEY_SIMPLEX, 0.4, [int(c) for c in color], 1)
    from PIL import Image, ImageDraw

    drawn = Image.fromarray(image)
    ImageDraw.Draw(drawn).text((int(x), int(y)), text, fill=tuple(int(c) for c in color))
    return np.array(drawn)


def _colors(about: dict[str, Any]) -> Array:
    count = max(len(about.get('classes') or ()), 1)
    given = about.get('palette')
    if given and len(given) >= count:
        return np.array(given, np.uint8)
    return np.random.default_rng(1).integers(64, 256, (max(count, 32), 3)).astype(np.uint8)


def _name(about: dict[str, Any], label: int) -> str:
    classes = about.get('classes') or ()
    return classes[label] if label < len(classes) else str(label)


def _cv2() -> Any:
    try:
        import cv2
    except ImportError:
        return None
    return cv2


if __name__ == '__main__':
    _parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add_options(_parser)
    try:
        run(_parser.parse_args())
    except UserError as _error:
        sys.exit(f'error: {_error}')
