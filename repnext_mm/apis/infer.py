"""Annotated images from a config and a checkpoint, through the ecosystem's own inferencers and visualizers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from numpy.typing import NDArray

from repnext_mm._files import drafted
from repnext_mm.apis.build import build_model
from repnext_mm.apis.checks import check_checkpoint, check_model
from repnext_mm.apis.config import (
    building,
    classes_in_checkpoint,
    classes_of_config,
    drop_initial_weights,
    innermost_datasets,
    load_config,
)
from repnext_mm.apis.image_file import existing, fit_image, found_images, renamed
from repnext_mm.apis.safe_loading import reading_safely, resolved
from repnext_mm.checkpoints import read_checkpoint
from repnext_mm.errors import UserError
from repnext_mm.models import type_name
from repnext_mm.models.base import deployed_like, fit_to_model
from repnext_mm.reparam import fuse_checked

_LEGIBLE = 320  # pixels of an image's short side


class ClassScore(NamedTuple):
    """One class and how sure a classifier is of it."""

    label: int
    name: str | None  # None where nobody named the classes
    score: float  # 0 to 1

    def __str__(self) -> str:
        return f'{self.score:.4f} {self.label}' + ('' if self.name is None else f' ({self.name})')


class _Source(NamedTuple):
    """An image, and the file that stands for it."""

    given: Path
    file: Path


_Say = Callable[[str], object]
_Annotate = Callable[[_Source, Path, _Say], Any]  # the data sample of what was found


@dataclass(frozen=True)
class AnnotatedImages:
    """What was written for several images, and why some were not."""

    written: tuple[Path, ...]
    replaced: tuple[Path, ...]  # of the written: where an earlier run had left a file of this name
    failed: Mapping[str, str]  # image: sentence


def annotate_image(image: str | Path, config_path: str | Path, checkpoint: str, **options: Any) -> Path:
    """Run a detector, segmentor or classifier on one image, its backbone fused, and save the annotated image.

    For the options, see ``annotate_images``.

    Returns:
        The path of the annotated image, ``out_dir/vis/NAME``.

    Raises:
        UserError: one sentence with the value, the rule and the way out.
    """
    done = annotate_images([existing(image)], config_path, checkpoint, **options)
    if done.failed:
        raise UserError(next(iter(done.failed.values())))
    return done.written[0]


def annotate_images(
    images: Sequence[str | Path],
    config_path: str | Path,
    checkpoint: str,
    *,
    out_dir: str | Path = 'work_dirs/infer',
    device: str | None = None,
    score_threshold: float = 0.3,
    fuse: bool = True,
    ema: bool = False,
    trust_pickle: bool = False,
    options: Mapping[str, Any] | None = None,
    report: Callable[[str], object] | None = None,
    found: Callable[[Path, Any], object] | None = None,
) -> AnnotatedImages:
    """Run a detector, segmentor or classifier on images, its backbone fused, and save the annotated images.

    An image that cannot be annotated does not stop the others. One of more than
    ``repnext_mm.apis.image_file.MAX_PIXELS`` is scaled down.

    Args:
        images: files, folders (their own images, not those of folders in them) and patterns such as ``'in/*.jpg'``.
        config_path: of the model.
        checkpoint: it names the classes, or else the config's test data set does; a classifier without either has
            numbered ones.
        out_dir: images go to ``out_dir/vis/NAME``; NAME ends in ``.png`` where OpenCV cannot write the image's format,
            and has a number where two images of one call share it. Files of earlier calls are replaced.
        device: such as ``'cpu'``; by default the best there is.
        score_threshold: in [0, 1], hides weak detections.
        fuse: run the fused backbone.
        ema: take the averaged weights of the checkpoint.
        trust_pickle: see ``run_training``.
        options: overrides of the config.
        report: called with the path of each image of several, and with each of a classifier's top five classes, as
            text, best first.
        found: called with the path of each image and mmdet's or mmseg's data sample of it.

    Raises:
        UserError: one sentence with the value, the rule and the way out.
    """
    files, place = found_images(images), Path(out_dir) / 'vis'
    given = {os.path.realpath(file) for file in files}
    annotate = build_annotator(
        config_path,
        checkpoint,
        device=device,
        score_threshold=score_threshold,
        fuse=fuse,
        ema=ema,
        trust_pickle=trust_pickle,
        options=options,
    )
    say = report if report is not None else (lambda _: None)
    written, replaced, failed = list[Path](), list[Path](), dict[str, str]()
    for image in files:
        if len(files) > 1:
            say(str(image))
        try:
            with fit_image(image) as file, TemporaryDirectory() as scratch:
                path = place / _free_name(file.name, written)
                if os.path.realpath(path) in given:
                    raise UserError(f"'{path}' was given to be read and would be replaced: choose another out_dir")
                there, drawn = path.exists(), Path(scratch, 'vis', path.name)
                drawn.parent.mkdir()
                sample = annotate(_Source(image, file), drawn, say)
                if not drawn.is_file():
                    raise UserError(f"no image can be written under the name '{path.name}': give a JPEG or PNG file")
                with drafted(path) as draft:
                    place.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(drawn, draft)
        except UserError as error:
            failed[str(image)] = str(error)
            continue
        if found is not None:
            found(image, sample)
        written.append(path)
        replaced += [path] * there
    return AnnotatedImages(tuple(written), tuple(replaced), failed)


def annotate_frames(
    frames: Iterable[NDArray[np.uint8]],
    config_path: str | Path,
    checkpoint: str,
    *,
    device: str | None = None,
    score_threshold: float = 0.3,
    fuse: bool = True,
    ema: bool = False,
    trust_pickle: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Iterator[tuple[NDArray[np.uint8], Any]]:
    """Frames of a video, ``(H, W, 3)`` in RGB: each with what was found drawn on it, and its data sample.

    For the options, see ``annotate_images``.

    Raises:
        UserError: one sentence with the value, the rule and the way out.
    """
    import cv2

    annotate = build_annotator(
        config_path,
        checkpoint,
        device=device,
        score_threshold=score_threshold,
        fuse=fuse,
        ema=ema,
        trust_pickle=trust_pickle,
        options=options,
    )
    with TemporaryDirectory() as scratch:
        file, drawn = Path(scratch, 'frame.png'), Path(scratch, 'vis', 'frame.png')
        drawn.parent.mkdir()
        for frame in frames:
            cv2.imwrite(str(file), frame[..., ::-1])
            sample = annotate(_Source(file, file), drawn, lambda _: None)
            shown: Any = cv2.imread(str(drawn))
            yield np.ascontiguousarray(shown[..., ::-1]), sample


def top_classes(
    model: Any,
    image: str | Path,
    *,
    pipeline: Sequence[Mapping[str, Any]],
    names: Sequence[str] | None = None,
    count: int = 5,
) -> tuple[ClassScore, ...]:
    """The ``count`` most likely classes of one image, best first, by an MMPretrain classifier in eval mode.

    ``pipeline`` is that of the test data. One without a step that loads files belongs to data in memory (CIFAR); it is
    given the image so that the network sees RGB. A photograph is turned as its EXIF says, as the drawn one is, where
    the test data (ImageNet, as the authors read it) are not. ``names`` of another number of classes are ignored.

    Raises:
        UserError: the model gives no scores.
    """
    pipeline = [
        {**step, 'color_type': 'color'} if step.get('color_type') == 'color_ignore_orientation' else step
        for step in pipeline
    ]
    with torch.no_grad():
        sample = model.test_step(pseudo_collate([Compose(pipeline)(_loaded(model, image, pipeline))]))[0]
    if 'pred_score' not in sample:
        raise UserError(f'{type(model).__name__} gives no score for each class: take a model that classifies images')
    scores = sample.pred_score.flatten().cpu()
    names = names if names is not None and len(names) == len(scores) else None
    best = scores.topk(min(count, len(scores)))
    return tuple(
        ClassScore(label, None if names is None else str(names[label]), score)
        for score, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    )


def draw_classes(image: str | Path, found: Sequence[ClassScore]) -> NDArray[np.uint8]:
    """The image, (H, W, 3) in BGR, with its classes written on it; a small one is enlarged to be legible."""
    import cv2
    from mmpretrain.structures import DataSample
    from mmpretrain.visualization import UniversalVisualizer

    scores = torch.zeros(1 + max(item.label for item in found))
    scores[[item.label for item in found]] = torch.tensor([item.score for item in found])
    sample = DataSample().set_pred_score(scores).set_pred_label([item.label for item in found])
    # ImageNet's names list synonyms, which an image has no room for
    names = {item.label: item.name.split(',')[0] for item in found if item.name is not None}
    bgr: Any = cv2.imread(str(image))
    small = min(bgr.shape[:2]) < _LEGIBLE
    drawn = UniversalVisualizer().visualize_cls(
        bgr[..., ::-1], sample, classes=names or None, draw_gt=False, resize=_LEGIBLE if small else None
    )
    return np.ascontiguousarray(drawn[..., ::-1])


def build_annotator(
    config_path: str | Path,
    checkpoint: str,
    *,
    device: str | None,
    score_threshold: float,
    fuse: bool,
    ema: bool,
    trust_pickle: bool,
    options: Mapping[str, Any] | None,
) -> _Annotate:
    """What reads an image, draws on it and writes it to a second path ``.../vis/NAME``, with the model loaded once."""
    if not 0 <= score_threshold <= 1:
        raise UserError(f'score_threshold={score_threshold} is not a probability: choose one from 0 to 1')
    config = load_config(config_path, options=options)
    scope = config.get('default_scope')
    if scope not in ('mmdet', 'mmseg', 'mmpretrain'):
        raise UserError(
            f"default_scope={scope!r} has no annotated images here: give a detection ('mmdet'), segmentation "
            "('mmseg') or classification ('mmpretrain') config"
        )
    if config.get('test_dataloader') is None:
        raise UserError(
            f"config '{config_path}' has no `test_dataloader`, whose pipeline prepares the image: inherit a complete "
            'config'
        )
    check_model(config.model)
    check_checkpoint(checkpoint, given_as='checkpoint')
    device = _usable(device)
    drop_initial_weights(config.model)
    if scope == 'mmpretrain':
        return _classifier(config, checkpoint, device=device, fuse=fuse, ema=ema, trust_pickle=trust_pickle)
    with building(config), reading_safely(trust_pickle=trust_pickle):
        inferencer = build_inferencer(config, checkpoint, device=device, ema=ema)
    if fuse:
        inferencer.model, _ = fuse_checked(inferencer.model)
    settings = dict(pred_score_thr=score_threshold) if scope == 'mmdet' else dict(opacity=0.5)

    def annotate(source: _Source, out: Path, say: _Say) -> Any:
        # the library keeps the name of what it reads
        with renamed(source.file, out.name) as file, _told_of(source.given):
            done = inferencer(str(file), out_dir=str(out.parents[1]), return_datasamples=True, **settings)
        return done['predictions'][0] if scope == 'mmdet' else done

    return annotate


@contextmanager
def _told_of(image: str | Path) -> Iterator[None]:
    """Say in one sentence that an image does not pass, whatever a config's transforms and network say of it.

    Raises:
        UserError: in place of all but what tells of a bug, in whatever code.
    """
    try:
        yield
    except (UserError, AttributeError, ImportError, NameError, TypeError):
        raise
    except Exception as error:  # such as OpenCV's own kind
        reason = ' '.join(str(error).split())[:300]
        raise UserError(
            f"image '{image}' does not pass the config's test pipeline and model ({type(error).__name__}: {reason}): "
            'give a larger or less narrow one, or fix the config'
        ) from error


def _free_name(name: str, written: Sequence[Path]) -> str:
    """The name, or one with a number, that no other image of this call has taken."""
    taken, path = {path.name for path in written}, Path(name)
    names = (f'{path.stem}_{number}{path.suffix}' for number in count(2))
    return name if name not in taken else next(each for each in names if each not in taken)


def _classifier(
    config: Config, checkpoint: str, *, device: str, fuse: bool, ema: bool, trust_pickle: bool
) -> _Annotate:
    file = resolved(checkpoint)
    model: Any = build_model(config, file, ema=ema, testing=True, trust_pickle=trust_pickle).to(device)
    if fuse:
        model, _ = fuse_checked(model)
    known = classes_in_checkpoint(read_checkpoint(file, trust_pickle=trust_pickle)) or classes_of_config(config)
    pipeline = next(innermost_datasets(config.test_dataloader['dataset']))['pipeline']

    def annotate(source: _Source, out: Path, say: _Say) -> Any:
        import cv2

        with _told_of(source.given):
            found = top_classes(model, source.file, pipeline=pipeline, names=known.get('classes'))
        for item in found:
            say(str(item))
        cv2.imwrite(str(out), draw_classes(source.file, found))
        return found

    return annotate


def build_inferencer(config: Config, checkpoint: str, *, device: str, ema: bool = False) -> Any:
    """mmdet's or mmseg's inferencer; where a checkpoint does not name its classes, the config's data set does."""
    scope = config.default_scope
    init_default_scope(scope)
    base: Any = import_module(f'{scope}.apis')
    base = base.DetInferencer if scope == 'mmdet' else base.MMSegInferencer
    names, source = classes_of_config(config), checkpoint

    class Inferencer(base):  # its own fallbacks are COCO and Cityscapes, whatever the model was trained on
        def _load_weights_to_model(self, model: Any, checkpoint: Any, cfg: Any) -> None:
            meta = checkpoint.get('meta') or {}
            if not {'dataset_meta', 'CLASSES'} & meta.keys():
                meta = {**meta, 'dataset_meta': names}
            deployed_like(model, checkpoint, ema=ema)
            weights, _ = fit_to_model(model, checkpoint, source=source, ema=ema)
            checkpoint = {'state_dict': weights, 'meta': meta}
            super()._load_weights_to_model(model, checkpoint, cfg)

    inferencer = Inferencer(model=config, weights=checkpoint, device=device, scope=scope)
    inferencer.show_progress = False  # mmsegmentation 1.2 has no argument for it
    return inferencer


def _usable(device: str | None) -> str:
    """The asked device, or the best there is.

    Raises:
        UserError: torch does not know or have it.
    """
    if device is None:
        return get_device()
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"device '{device}' cannot be used here ({error}): choose cpu or omit it") from error
    return device


def _loaded(model: Any, image: str | Path, pipeline: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a test pipeline starts with: a path, or the pixels."""
    if any('Load' in type_name(step['type']) for step in pipeline):
        return {'img_path': str(image)}
    import cv2

    pixels: Any = cv2.imread(str(image))
    if not getattr(model.data_preprocessor, 'to_rgb', False):
        pixels = np.ascontiguousarray(pixels[..., ::-1])
    return {'img': pixels, 'img_shape': pixels.shape[:2], 'ori_shape': pixels.shape[:2]}
