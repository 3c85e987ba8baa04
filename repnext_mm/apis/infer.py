"""Annotated pictures from a config and a checkpoint, through the ecosystem's own inferencers."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATASETS, init_default_scope

from repnext_mm.apis.config import innermost_datasets, load_config
from repnext_mm.apis.evaluate import drop_initial_weights
from repnext_mm.apis.preflight import check_checkpoint, check_model
from repnext_mm.apis.weights import reading_safely
from repnext_mm.checkpoints import check_fits, model_state
from repnext_mm.hooks import FuseBackboneHook


def annotate_image(
    image: str | Path,
    config_path: str | Path,
    checkpoint: str,
    *,
    out_dir: str | Path = 'work_dirs/infer',
    device: str | None = None,
    score_threshold: float = 0.3,
    fuse: bool = True,
    trust_pickle: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Run a detector or a segmentor on one image, with its backbone fused, and save the annotated picture.

    Class names come from the checkpoint, or from the config's test data set where the checkpoint has none.
    ``score_threshold`` in [0, 1] hides weak detections. For ``trust_pickle``, see ``run_training``.

    Returns:
        The picture's path, ``out_dir/vis/NAME``.

    Raises:
        FileNotFoundError, TypeError, ValueError: one sentence with the value, the rule and the way out.
    """
    import cv2

    image = Path(image)
    if not image.is_file():
        raise FileNotFoundError(f"image '{image}' does not exist: give the path of one picture")
    if not cv2.haveImageReader(str(image)):
        raise ValueError(f"image '{image}' cannot be read as a picture: give a JPEG or PNG file")
    if not 0 <= score_threshold <= 1:
        raise ValueError(f'score_threshold={score_threshold} is not a probability: choose one from 0 to 1')
    config = load_config(config_path, options=options)
    scope = config.get('default_scope')
    if scope not in ('mmdet', 'mmseg'):
        raise ValueError(
            f"default_scope={scope!r} has no annotated pictures here: give a detection ('mmdet') or segmentation "
            "('mmseg') config"
        )
    check_model(config.model)
    check_checkpoint(checkpoint, given_as='checkpoint')
    device = _usable(device)
    drop_initial_weights(config.model)
    with reading_safely(trust_pickle=trust_pickle):
        inferencer = _inferencer(config, checkpoint, device=device)
    if fuse:
        inferencer.model, _ = FuseBackboneHook().fuse_backbone(inferencer.model)
    settings = dict(pred_score_thr=score_threshold) if scope == 'mmdet' else dict(opacity=0.5)
    inferencer(str(image), out_dir=str(out_dir), **settings)
    return Path(out_dir) / 'vis' / image.name


def _inferencer(config: Config, checkpoint: str, *, device: str) -> Any:
    """mmdet's or mmseg's inferencer; where a checkpoint does not name its classes, the config's data set does."""
    scope = config.default_scope
    init_default_scope(scope)
    base: Any = import_module(f'{scope}.apis')
    base = base.DetInferencer if scope == 'mmdet' else base.MMSegInferencer
    names, source = _class_names(config), checkpoint

    class Inferencer(base):  # its own fallbacks are COCO and Cityscapes, whatever the model was trained on
        def _load_weights_to_model(self, model: Any, checkpoint: Any, cfg: Any) -> None:
            meta = checkpoint.get('meta') or {}
            if not {'dataset_meta', 'CLASSES'} & meta.keys():
                meta = {**meta, 'dataset_meta': names}
            weights, _ = check_fits(model_state(checkpoint), model.state_dict(), source=source)
            checkpoint = {'state_dict': weights, 'meta': meta}
            super()._load_weights_to_model(model, checkpoint, cfg)

    inferencer = Inferencer(model=config, weights=checkpoint, device=device, scope=scope)
    inferencer.show_progress = False  # mmsegmentation 1.2 has no argument for it
    return inferencer


def _class_names(config: Config) -> dict[str, Any]:
    """Classes and palette of the config's test data set, which is not read."""
    dataset = next(innermost_datasets(config.test_dataloader['dataset']))
    return dict(DATASETS.build({**dataset, 'lazy_init': True}).metainfo)


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
