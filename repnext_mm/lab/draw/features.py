"""The four chunks of a token mixer, identity, small, medium and large, before and after fusing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repnext_mm.errors import UserError
from repnext_mm.lab.draw.canvas import new_figure, save_png
from repnext_mm.models.repnext import ChunkConv
from repnext_mm.reparam import fuse
from repnext_mm.reparam.verify import distance

SCALES = ('identity', 'small', 'medium', 'large')
_WINDOWS = {'identity': 'no kernel', 'small': '3x3', 'medium': '7x7', 'large': '1x11, 11x1'}
_SIDE = 2.5  # inches of a panel


@torch.no_grad()
def token_mixer_chunks(backbone: nn.Module, inputs: Tensor, *, block: str) -> dict[str, Tensor]:
    """What each scale of a block's token mixer returns: ``(N, C / 4, H, W)`` by the names of ``SCALES``.

    Args:
        backbone: in train form or fused.
        inputs: ``(N, 3, H, W)``.
        block: its name in the backbone, such as ``stages.0.blocks.1``.

    Raises:
        UserError: the backbone has no such block with four scales.
    """
    mixers = {name: module for name, module in backbone.named_modules() if isinstance(module, ChunkConv)}
    if f'{block}.token_mixer' not in mixers:
        names = [name.removesuffix('.token_mixer') for name in mixers]
        raise UserError(
            f"'{block}' is not a block with four scales: "
            + (f'choose from {", ".join(names)}' if names else 'only the multi-scale RepNeXt, m0 to m5, has them')
        )
    seen: list[Tensor] = []
    # a copy: what follows the mixer may overwrite its output
    hook = mixers[f'{block}.token_mixer'].register_forward_hook(lambda *call: seen.append(call[-1].clone()))
    try:
        backbone(inputs)
    finally:
        hook.remove()
    return dict(zip(SCALES, seen[0].chunk(4, dim=1), strict=True))


def draw_features(
    backbone: nn.Module, inputs: Tensor, image: NDArray[np.uint8], path: str | Path, *, block: str, title: str
) -> Path:
    """Save the channel means of the four chunks for one image: a row in train form, a row fused.

    Args:
        backbone: in train form and eval mode.
        inputs: ``(1, 3, H, W)``.
        image: ``(h, w, 3)``, what to show of the image.
        path: of the PNG.
        block: see ``token_mixer_chunks``.
        title: of the image.
    """
    fused, report = fuse(backbone)
    if not report:
        raise UserError(f'{title} is fused already: give weights in train form, to see both')
    rows = {
        name: token_mixer_chunks(model, inputs, block=block)
        for name, model in (('train form', backbone), ('fused', fused))
    }
    train, merged = (torch.cat([*chunks.values()], dim=1) for chunks in rows.values())
    error = distance(merged, train)
    height, width = train.shape[2:]
    figure = new_figure(
        (_SIDE * 5, _SIDE * 2 + 1.4),
        (
            f'{title}\n{block}: mean over the {train.shape[1] // 4} channels of each scale, {height}x{width} units; '
            f'largest difference after fusing {error:.0e} of the largest value'
        ),
    )
    axes = figure.subplots(2, 5)
    for line, name in zip(axes, rows, strict=True):
        line[0].imshow(image)
        line[0].set_ylabel(name, fontsize=11)
        line[0].set(xticks=[], yticks=[])
    axes[0][0].set_title('image', fontsize=11)
    for column, scale in enumerate(SCALES, start=1):
        means = [chunks[scale][0].mean(dim=0).numpy() for chunks in rows.values()]
        limits = {'vmin': means[0].min(), 'vmax': means[0].max()}
        for line, mean in zip(axes, means, strict=True):
            drawn = line[column].imshow(mean, cmap='viridis', **limits)
            line[column].set_axis_off()
        axes[0][column].set_title(f'{scale} ({_WINDOWS[scale]})', fontsize=11)
        figure.colorbar(drawn, ax=list(axes[:, column]), location='bottom', shrink=0.85, label='activation')
    return save_png(figure, path)
