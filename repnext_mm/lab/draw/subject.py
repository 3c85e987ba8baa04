"""The model to visualize, and images as its own config loads and preprocesses them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, init_default_scope
from numpy.typing import NDArray
from torch import Tensor, nn

from repnext_mm.apis.build import build_model
from repnext_mm.apis.config import innermost_datasets, load_config, without_teacher
from repnext_mm.apis.image_file import existing
from repnext_mm.apis.safe_loading import reading_safely
from repnext_mm.errors import UserError
from repnext_mm.models import RepNeXt, type_name

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, RGB


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model in eval mode; without a config it is a bare backbone with random weights."""

    name: str  # for titles
    model: nn.Module
    config: Config | None = None

    @property
    def backbone(self) -> nn.Module:
        """The model's backbone, or the model itself."""
        found = getattr(self.model, 'backbone', self.model)
        assert isinstance(found, nn.Module)
        return found


@dataclass(frozen=True, kw_only=True)
class Seen:
    """An image as it enters the network."""

    inputs: Tensor  # (1, 3, H, W), normalized, perhaps padded at the right and at the bottom
    image: NDArray[np.uint8]  # (h, w, 3), RGB, scaled as the network sees it, not padded
    samples: list[Any] | None = None  # of the model's framework


def load_subject(
    config_path: str | Path | None = None,
    checkpoint: str | Path | None = None,
    *,
    arch: str = 'm0',
    trust_pickle: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Subject:
    """The model of a config with the weights of a file; without them a RepNeXt with random weights, always the same.

    Raises:
        UserError: one of the two is missing, cannot be read, or does not fit the other.
    """
    if (config_path is None) != (checkpoint is None):
        raise UserError('give a config and a checkpoint together, or neither')
    if config_path is None or checkpoint is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Subject(name=f'RepNeXt-{arch.upper()}, random weights', model=RepNeXt(arch).eval())
    config = load_config(config_path, options=options)
    model = build_model(config, checkpoint, trust_pickle=trust_pickle)
    return Subject(name=Path(config_path).stem, model=model, config=config)


def untrained(subject: Subject) -> nn.Module:
    """A backbone like the subject's with random weights, always the same.

    Raises:
        UserError: the subject's weights are random already.
    """
    if subject.config is None:
        raise UserError(f'{subject.name}: there is nothing trained to compare with, give a config and a checkpoint')
    model = without_teacher(subject.config.model)
    settings = {key: value for key, value in model.get('backbone', model).items() if key != 'init_cfg'}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with reading_safely():
            backbone: nn.Module = MODELS.build(settings)
    backbone.eval()  # MMPretrain's ResNet returns nothing
    return backbone


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """An image file as ``(H, W, 3)``, BGR as the pipelines load it.

    Raises:
        UserError: there is no such file, or it is not an image.
    """
    bgr: Any = cv2.imread(str(existing(path)))
    if bgr is None:
        raise UserError(f"image '{path}' cannot be read as an image: give a JPEG or PNG file")
    return np.asarray(bgr, np.uint8)


def see(subject: Subject, path: str | Path, *, size: int = 224) -> Seen:
    """Read an image with the config's test pipeline; a bare backbone gets a square of ``size`` pixels.

    Raises:
        UserError: there is no such image.
    """
    bgr = read_image(path)
    config = subject.config
    if config is None or config.get('test_dataloader') is None or not hasattr(subject.model, 'data_preprocessor'):
        image = np.ascontiguousarray(cv2.resize(bgr, (size, size))[..., ::-1])
        normal = (torch.from_numpy(image) - torch.tensor(_MEAN)) / torch.tensor(_STD)
        return Seen(inputs=normal.permute(2, 0, 1)[None].float(), image=image)
    init_default_scope(config.get('default_scope') or 'mmengine')
    steps = next(innermost_datasets(config.test_dataloader['dataset']))['pipeline']
    # an image of the user's has no annotations
    pipeline = Compose([step for step in steps if 'Annotations' not in type_name(step['type'])])
    item = pipeline({'img_path': str(path), 'img_id': 0})
    if not isinstance(item, dict) or not isinstance(item.get('inputs'), Tensor):
        raise UserError(f"the test pipeline of '{config.filename}' does not make a single image: omit augmentation")
    batch: Any = subject.model.data_preprocessor(pseudo_collate([item]), False)  # type: ignore[operator]
    image = np.ascontiguousarray(item['inputs'].permute(1, 2, 0).numpy()[..., ::-1])  # pipelines load BGR
    return Seen(inputs=batch['inputs'], image=image.astype(np.uint8), samples=batch['data_samples'])
