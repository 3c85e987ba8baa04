"""Annotated images from a config and a checkpoint, through the ecosystem's own inferencers and visualizers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope

from repnext_mm._files import writing
from repnext_mm.apis.checks import check_checkpoint, check_model
from repnext_mm.apis.classes import classes_in_checkpoint, classes_of_config
from repnext_mm.apis.classify import draw_classes, top_classes
from repnext_mm.apis.config import building, innermost_datasets, load_config
from repnext_mm.apis.image_file import existing, fit_picture, found_images, renamed
from repnext_mm.apis.safe_loading import reading_safely, resolved
from repnext_mm.apis.test import drop_initial_weights
from repnext_mm.apis.weight_files import load_model
from repnext_mm.checkpoints import read_checkpoint
from repnext_mm.errors import UserError
from repnext_mm.hooks import FuseBackboneHook
from repnext_mm.models.base import deployed_like, fit_to_model


class _Source(NamedTuple):
    """An image, and the file that stands for it."""

    given: Path
    file: Path


_Say = Callable[[str], object]
_Annotate = Callable[[_Source, Path, _Say], object]


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
        report: called with the path of each image of several, and with each of a classifier's five surest classes, as
            text, best first.

    Raises:
        UserError: one sentence with the value, the rule and the way out.
    """
    found = found_images(images)
    annotate = _annotator(
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
    place, written, replaced, failed = Path(out_dir) / 'vis', list[Path](), list[Path](), dict[str, str]()
    for image in found:
        if len(found) > 1:
            say(str(image))
        try:
            with fit_picture(image) as picture:
                path = place / _free_name(picture.name, written)
                there = path.exists()
                with _drafted(path) as draft:
                    annotate(_Source(image, picture), draft, say)
        except UserError as error:
            failed[str(image)] = str(error)
            continue
        written.append(path)
        replaced += [path] * there
    return AnnotatedImages(tuple(written), tuple(replaced), failed)


def _annotator(
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
        inferencer = _inferencer(config, checkpoint, device=device, ema=ema)
    if fuse:
        inferencer.model = _fused(inferencer.model)
    settings = dict(pred_score_thr=score_threshold) if scope == 'mmdet' else dict(opacity=0.5)

    def annotate(source: _Source, draft: Path, say: _Say) -> None:
        # the library keeps the name of what it reads
        with renamed(source.file, draft.name) as file, _told_of(source.given):
            inferencer(str(file), out_dir=str(draft.parents[1]), **settings)

    return annotate


def _fused(model: Any) -> Any:
    try:
        return FuseBackboneHook().fuse_backbone(model)[0]
    except RuntimeError as error:  # a sentence of the hook, for which a training has a traceback
        raise UserError(str(error)) from error


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


@contextmanager
def _folder_beside(path: Path) -> Iterator[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix='.draft-') as folder:
        yield folder


@contextmanager
def _drafted(path: Path) -> Iterator[Path]:
    """A path ``.../vis/NAME`` to write to; what is there afterwards is put into its place at one stroke.

    Raises:
        UserError: nothing was written.
    """
    with writing(path), _folder_beside(path) as folder:
        draft = Path(folder) / 'vis' / path.name
        draft.parent.mkdir()
        yield draft
        if not draft.is_file():
            raise UserError(f"no image can be written under the name '{path.name}': give a JPEG or PNG file")
        os.replace(draft, path)


def _free_name(name: str, written: Sequence[Path]) -> str:
    """The name, or one with a number, that no other image of this call has taken."""
    taken, path = {path.name for path in written}, Path(name)
    names = (f'{path.stem}_{number}{path.suffix}' for number in count(2))
    return name if name not in taken else next(each for each in names if each not in taken)


def _classifier(
    config: Config, checkpoint: str, *, device: str, fuse: bool, ema: bool, trust_pickle: bool
) -> _Annotate:
    file = resolved(checkpoint)
    model: Any = load_model(config, file, ema=ema, testing=True, trust_pickle=trust_pickle).to(device).eval()
    if fuse:
        model = _fused(model)
    known = classes_in_checkpoint(read_checkpoint(file, trust_pickle=trust_pickle)) or classes_of_config(config)
    pipeline = next(innermost_datasets(config.test_dataloader['dataset']))['pipeline']

    def annotate(source: _Source, draft: Path, say: _Say) -> None:
        import cv2

        with _told_of(source.given):
            found = top_classes(model, source.file, pipeline=pipeline, names=known.get('classes'))
        for item in found:
            say(str(item))
        cv2.imwrite(str(draft), draw_classes(source.file, found))

    return annotate


def _inferencer(config: Config, checkpoint: str, *, device: str, ema: bool = False) -> Any:
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
