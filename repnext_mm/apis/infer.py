"""Annotated pictures from a config and a checkpoint, through the ecosystem's own inferencers and visualizers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope

from repnext_mm.apis.checkpoint import load_model
from repnext_mm.apis.classes import classes_in_checkpoint, classes_of_config
from repnext_mm.apis.classify import ClassScore, draw_classes, top_classes
from repnext_mm.apis.config import building, innermost_datasets, load_config
from repnext_mm.apis.evaluate import drop_initial_weights
from repnext_mm.apis.picture import existing, fit_picture
from repnext_mm.apis.preflight import check_checkpoint, check_model
from repnext_mm.apis.weights import reading_safely, resolved
from repnext_mm.checkpoints import read_checkpoint
from repnext_mm.hooks import FuseBackboneHook
from repnext_mm.models.pretrained import deployed_like, fit_to_model


def annotate_image(
    image: str | Path,
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
) -> Path:
    """Run a detector, segmentor or classifier on one image, its backbone fused, and save the annotated picture.

    Class names come from the checkpoint, or from the config's test data set where the checkpoint has none; a classifier
    without either has numbered classes. ``score_threshold`` in [0, 1] hides weak detections. ``ema`` takes the averaged
    weights of the checkpoint. For ``trust_pickle``, see ``run_training``. ``report`` is called with each of a
    classifier's five surest classes, as text, best first.

    A picture of more than ``repnext_mm.apis.picture.MAX_PIXELS`` is scaled down.

    Returns:
        The picture's path, ``out_dir/vis/NAME``; NAME ends in ``.png`` where OpenCV cannot write the image's format.

    Raises:
        FileNotFoundError, TypeError, ValueError: one sentence with the value, the rule and the way out.
    """
    existing(image)
    if not 0 <= score_threshold <= 1:
        raise ValueError(f'score_threshold={score_threshold} is not a probability: choose one from 0 to 1')
    config = load_config(config_path, options=options)
    scope = config.get('default_scope')
    if scope not in ('mmdet', 'mmseg', 'mmpretrain'):
        raise ValueError(
            f"default_scope={scope!r} has no annotated pictures here: give a detection ('mmdet'), segmentation "
            "('mmseg') or classification ('mmpretrain') config"
        )
    if config.get('test_dataloader') is None:
        raise ValueError(
            f"config '{config_path}' has no `test_dataloader`, whose pipeline prepares the picture: inherit a complete "
            'config'
        )
    check_model(config.model)
    check_checkpoint(checkpoint, given_as='checkpoint')
    device = _usable(device)
    drop_initial_weights(config.model)
    place = Path(out_dir) / 'vis'
    with fit_picture(image) as picture:
        if scope == 'mmpretrain':
            with _told_of(image):
                found = _classified(
                    picture, config, checkpoint, device=device, fuse=fuse, ema=ema, trust_pickle=trust_pickle
                )
            for item in found:
                if report is not None:
                    report(str(item))
            with _drafted(place, picture.name) as draft, _told_of(image):
                _write(draft, draw_classes(picture, found))
            return place / picture.name
        with building(config), reading_safely(trust_pickle=trust_pickle):
            inferencer = _inferencer(config, checkpoint, device=device, ema=ema)
        if fuse:
            inferencer.model = _fused(inferencer.model)
        settings = dict(pred_score_thr=score_threshold) if scope == 'mmdet' else dict(opacity=0.5)
        with _drafted(place, picture.name) as draft, _told_of(image):
            inferencer(str(picture), out_dir=str(draft.parents[1]), **settings)
    return place / picture.name


def _fused(model: Any) -> Any:
    try:
        return FuseBackboneHook().fuse_backbone(model)[0]
    except RuntimeError as error:  # a sentence of the hook, for which a training has a traceback
        raise ValueError(str(error)) from error


@contextmanager
def _told_of(image: str | Path) -> Iterator[None]:
    """Say in one sentence that a picture does not pass, whatever transforms, network or drawing raise."""
    try:
        yield
    except (OSError, TypeError, ValueError):
        raise
    except Exception as error:  # such as OpenCV's own kind
        reason = ' '.join(str(error).split())[:300]
        raise ValueError(
            f"image '{image}' does not pass the config's test pipeline and model ({type(error).__name__}: {reason}): "
            'give a larger or less narrow one, or mend the config'
        ) from error


def _write(path: Path, pixels: Any) -> None:
    import cv2

    path.parent.mkdir()
    cv2.imwrite(str(path), pixels)


@contextmanager
def _drafted(place: Path, name: str) -> Iterator[Path]:
    """A path ``.../vis/NAME`` to write to; what is there afterwards is put into a folder at one stroke.

    Raises:
        ValueError: nothing was written.
    """
    place.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=place, prefix='.draft-') as folder:
        draft = Path(folder) / 'vis' / name
        yield draft
        if not draft.is_file():
            raise ValueError(f"no picture can be written under the name '{name}': give a JPEG or PNG file")
        os.replace(draft, place / name)


def _classified(
    image: Path, config: Config, checkpoint: str, *, device: str, fuse: bool, ema: bool, trust_pickle: bool
) -> tuple[ClassScore, ...]:
    file = resolved(checkpoint)
    model: Any = load_model(config, file, ema=ema, testing=True, trust_pickle=trust_pickle).to(device).eval()
    if fuse:
        model = _fused(model)
    known = classes_in_checkpoint(read_checkpoint(file, trust_pickle=trust_pickle)) or classes_of_config(config)
    pipeline = next(innermost_datasets(config.test_dataloader['dataset']))['pipeline']
    return top_classes(model, image, pipeline=pipeline, names=known.get('classes'))


def _inferencer(config: Config, checkpoint: str, *, device: str, ema: bool) -> Any:
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
        ValueError: torch does not know or have it.
    """
    if device is None:
        return get_device()
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device '{device}' cannot be used here ({error}): choose cpu or leave it away") from error
    return device
