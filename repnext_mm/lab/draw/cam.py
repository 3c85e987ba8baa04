"""Class activation maps of classifiers, detectors and segmentors, with the methods of the package grad-cam."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repnext_mm.apis.config import classes_of_config
from repnext_mm.errors import MissingPackageError, UserError
from repnext_mm.lab.draw.canvas import new_grid, save_png
from repnext_mm.lab.draw.subject import Seen, Subject

METHODS = {
    'gradcam': 'GradCAM',
    'gradcam++': 'GradCAMPlusPlus',
    'xgradcam': 'XGradCAM',
    'hirescam': 'HiResCAM',
    'layercam': 'LayerCAM',
    'eigencam': 'EigenCAM',
    'eigengradcam': 'EigenGradCAM',
}
_COLUMNS = 5
TASKS = {'mmpretrain': 'classification', 'mmdet': 'detection', 'mmseg': 'segmentation'}


class NothingToExplain(UserError):
    """The model sees nothing of the class in this image, or its map is flat; ``short`` says so in a few words."""

    def __init__(self, text: str, *, short: str) -> None:
        super().__init__(text)
        self.short = short


@dataclass(frozen=True, kw_only=True)
class ActivationMap:
    """Where in the image the score of a class comes from."""

    values: NDArray[np.float32]  # (h, w) of ``Seen.image``, 0 to 1
    label: str
    what: str  # the number that was explained
    layer: str
    method: str


def activation_map(
    subject: Subject, seen: Seen, *, method: str = 'gradcam', layer: str = 'stages.3', label: str | None = None
) -> ActivationMap:
    """Explain a class's score of an image: of a classifier its logit, of a detector the sum of the scores of its
    boxes, of a segmentor the sum of its logits over the pixels that it wins.

    Args:
        subject: with a config and weights, in train form or fused.
        seen: the image.
        method: a key of ``METHODS``.
        layer: a module of the backbone with one ``(N, C, H, W)`` output.
        label: a class's name; by default what the model sees most of: the best class, the class of the best box, the
            class with most pixels after the background.

    Raises:
        ImportError: the package grad-cam is missing.
        NothingToExplain: the class is not found in the image, or the map is flat.
        UserError: the method, layer or class is unknown.
    """
    config = subject.config
    scope = None if config is None else config.get('default_scope')
    if config is None or scope not in TASKS or seen.samples is None:
        raise UserError('class activation maps need a config of mmpretrain, mmdet or mmseg, and a checkpoint')
    if method not in METHODS:
        raise UserError(f"method '{method}' is unknown: choose from {', '.join(METHODS)}")
    modules = dict(subject.backbone.named_modules())
    if not layer or layer not in modules:
        raise UserError(f"the backbone has no layer '{layer}': try stages.3 or stages.2.blocks.0")
    names = _class_names(subject)
    if label is not None and label not in names:
        raise UserError(f"class '{label}' is unknown: choose from {', '.join(names[:20])}{' ...' * (len(names) > 20)}")
    answers = _Answers(subject.model, seen, scope=scope)
    with torch.no_grad():
        index, target, what = _TARGETS[scope](answers(seen.inputs)[0], names, label)
    explain = getattr(grad_cam(), METHODS[method])
    with explain(model=answers, target_layers=[modules[layer]]) as cam, torch.enable_grad():
        # a fused or frozen backbone has no parameter that would ask for gradients
        found = cam(input_tensor=seen.inputs.clone().requires_grad_(), targets=[target])[0]
    subject.model.zero_grad(set_to_none=True)
    if not found.max() > found.min():  # NaN too
        raise NothingToExplain(
            f"the map of '{names[index]}' at {layer} is flat: take an earlier layer, another method or a larger image",
            short=f'{names[index]}: a flat map',
        )
    height, width = seen.image.shape[:2]
    return ActivationMap(
        values=np.asarray(found, np.float32)[:height, :width],
        label=names[index],
        what=what,
        layer=layer,
        method=METHODS[method],
    )


def draw_activation_maps(image: NDArray[np.uint8], maps: list[ActivationMap], path: str | Path, *, title: str) -> Path:
    """Save an image ``(h, w, 3)`` and its activation maps, each laid over it."""
    columns = min(len(maps) + 1, _COLUMNS)
    rows = -(-(len(maps) + 1) // columns)
    figure, grid = new_grid(rows, columns, (3.1 * columns + 0.8, 3.6 * rows + 0.6), title)
    axes = grid.reshape(-1)
    axes[0].imshow(image)
    axes[0].set_title('image', fontsize=10)
    for axis, found in zip(axes[1:], maps, strict=False):
        axis.imshow(image.mean(axis=2), cmap='gray', vmin=0, vmax=255)  # gray leaves color to the map
        drawn = axis.imshow(found.values, cmap='inferno', vmin=0, vmax=1, alpha=0.6)
        axis.set_title(f'{found.label}: {found.what}\n{found.method}, {found.layer}', fontsize=10)
    figure.colorbar(drawn, ax=grid, label='activation / largest', shrink=0.75)
    return save_png(figure, path)


class _Answers(nn.Module):
    """A model as grad-cam calls it: a tensor in, one answer for each image out."""

    def __init__(self, model: Any, seen: Seen, *, scope: str) -> None:
        super().__init__()
        self.model = model
        self._samples = seen.samples or []
        self._scope = scope

    def forward(self, inputs: Tensor) -> Any:
        if self._scope == 'mmpretrain':
            return self.model(inputs, mode='tensor')
        if self._scope == 'mmseg':
            return self.model.encode_decode(inputs, [sample.metainfo for sample in self._samples])
        return [sample.pred_instances for sample in self.model.predict(inputs, self._samples, rescale=False)]


_Target = Callable[[Any], Tensor]


def _of_scores(scores: Tensor, names: list[str], label: str | None) -> tuple[int, _Target, str]:
    index = int(scores.argmax()) if label is None else names.index(label)
    return index, lambda found: found[index], f'probability {scores.softmax(0)[index].item():.2f}'


def _of_pixels(logits: Tensor, names: list[str], label: str | None) -> tuple[int, _Target, str]:
    won = logits.argmax(0)
    counts = torch.bincount(won.flatten(), minlength=len(logits))
    if label is None:
        index = int(max(range(len(counts)), key=lambda i: (names[i] != 'background', int(counts[i]))))
    else:
        index = names.index(label)
    if not counts[index]:
        raise NothingToExplain(
            f"class '{names[index]}' wins no pixel of this image: choose another class or image",
            short=f'{names[index]}: no pixel',
        )
    mask = (won == index).to(logits.dtype)
    share = counts[index].item() / won.numel()
    return index, lambda found: (found[index] * mask).sum(), f'{share:.1%} of the pixels'


def _of_boxes(instances: Any, names: list[str], label: str | None) -> tuple[int, _Target, str]:
    labels = instances.labels.tolist()
    wanted = [i for i, found in enumerate(labels) if label is None or names[found] == label]
    if not wanted:
        wanted_class = label or 'any class'
        raise NothingToExplain(
            f'no box of {wanted_class} is found in this image: choose another class or image',
            short=f'no box of {wanted_class}',
        )
    best = max(wanted, key=lambda i: instances.scores[i].item())
    index = labels[best]
    what = f'{labels.count(index)} boxes, best {instances.scores[best].item():.2f}'
    return index, lambda found: found.scores[found.labels == index].sum(), what


_TARGETS = {'mmpretrain': _of_scores, 'mmseg': _of_pixels, 'mmdet': _of_boxes}


def _class_names(subject: Subject) -> list[str]:
    assert subject.config is not None
    return list(classes_of_config(subject.config)['classes'])


def grad_cam() -> Any:
    """The library that explains.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        return import_module('pytorch_grad_cam')
    except ImportError as error:
        raise MissingPackageError(
            f"class activation maps need the package grad-cam ({error}): pip install 'repnext_mm[cam]'"
        ) from error
