"""Effective receptive fields: how much each pixel moves the center unit of every level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repnext_mm.errors import UserError
from repnext_mm.lab.draw.canvas import COLORS, legend_below, new_figure, save_png
from repnext_mm.lab.draw.subject import Subject, see, untrained

SHARES = {0.5: COLORS['teal'], 0.95: COLORS['red']}  # of the gradient inside the squares that are drawn
_FLOOR = -4  # powers of ten that are drawn


def compare_receptive_fields(
    subject: Subject,
    path: str | Path,
    *,
    images: Sequence[str | Path] = (),
    count: int = 8,
    size: int = 224,
    beside_random: bool = False,
) -> Path:
    """Save the receptive fields of a model's backbone, seen with image files or noise.

    Args:
        subject: the model.
        path: of the PNG.
        images: files of one size; by default ``count`` images of noise of ``size`` pixels.
        count, size: of the noise.
        beside_random: draw a second row, of the same network with random weights.

    Raises:
        UserError: an image cannot be read, or sizes differ; the weights are random already.
    """
    seen = [see(subject, image).inputs for image in images] or noise_images(count, size=size)
    rows = {'random' if subject.config is None else 'trained': receptive_fields(subject.backbone, seen)}
    if beside_random:
        rows['random'] = receptive_fields(untrained(subject), seen)
    pixels = 'x'.join(map(str, seen[0].shape[2:]))
    title = f'{subject.name}, {len(seen)} images{"" if images else " of noise"}, {pixels} pixels'
    return draw_receptive_fields(rows, path, title=title, levels=getattr(subject.backbone, 'out_indices', None))


def noise_images(count: int, *, size: int = 224) -> list[Tensor]:
    """Normal noise, always the same: ``(1, 3, size, size)`` each.

    Raises:
        UserError: a number is too small.
    """
    if count < 1 or size < 32:
        raise UserError(f'{count} images of {size} pixels: take at least 1 image of at least 32 pixels')
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 3, size, size, generator=generator) for _ in range(count)]


def receptive_fields(backbone: nn.Module, images: Sequence[Tensor]) -> list[NDArray[np.float64]]:
    """For each level that the backbone returns, the absolute gradient of its center unit by pixel, ``(H, W)``.

    The center unit is summed over its channels, the gradient over the colors, and averaged over the images; the
    largest value is then 1.

    Args:
        backbone: in eval mode, in train form or fused.
        images: ``(1, 3, H, W)``, normalized, all of one size.

    Raises:
        UserError: there are no images, or their sizes differ.
    """
    if len({image.shape for image in images}) != 1:
        raise UserError(f'images of shapes {sorted({tuple(image.shape) for image in images})}: give one size')
    sums: list[Tensor] = []
    for image in images:
        pixels = image.detach().clone().requires_grad_()
        with torch.enable_grad():
            levels = backbone(pixels)
        for index, level in enumerate(levels):
            center = level[..., level.shape[2] // 2, level.shape[3] // 2].sum()
            (gradient,) = torch.autograd.grad(center, pixels, retain_graph=index + 1 < len(levels))
            influence = gradient.abs().sum(dim=(0, 1)).double()
            if len(sums) <= index:
                sums.append(influence)
            else:
                sums[index] += influence
    return [(total / total.max()).numpy() for total in sums]


def side_holding(field: NDArray[np.float64], share: float) -> int:
    """The side in pixels of the smallest square around the center that holds a share of a field's sum."""
    height, width = field.shape
    rows = np.abs(np.arange(height) - height // 2)[:, None]
    columns = np.abs(np.arange(width) - width // 2)[None]
    distance = np.maximum(rows, columns)
    inside = np.cumsum(np.bincount(distance.ravel(), weights=field.ravel()))
    return 2 * int(np.searchsorted(inside, share * inside[-1] * (1 - 1e-12))) + 1


def draw_receptive_fields(
    rows: dict[str, list[NDArray[np.float64]]], path: str | Path, *, title: str, levels: Sequence[int] | None = None
) -> Path:
    """Save the fields of one or several backbones: a row for each, a panel for each level.

    Args:
        rows: what ``receptive_fields`` returned, by the name of the row.
        path: of the PNG.
        title: of the image.
        levels: the stages that the fields belong to; counted from 0 by default.
    """
    from matplotlib.patches import Rectangle

    columns = max(map(len, rows.values()))
    figure = new_figure((3.0 * columns + 1, 3.3 * len(rows) + 1.3), f'{title}\neffective receptive field of the center')
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, fields) in zip(axes, rows.items(), strict=True):
        for axis, field, level in zip(line, fields, levels or range(columns), strict=False):
            height, width = field.shape
            drawn = axis.imshow(np.log10(np.maximum(field, 10.0**_FLOOR)), cmap='magma', vmin=_FLOOR, vmax=0)
            sides = []
            for share, color in SHARES.items():
                side = side_holding(field, share)
                sides.append(f'{share:.0%} in {side}')
                corner = (width // 2 - side / 2, height // 2 - side / 2)
                axis.add_patch(
                    Rectangle(
                        corner,
                        side,
                        side,
                        fill=False,
                        edgecolor=color,
                        linewidth=1.5,
                        label=f'square that holds {share:.0%} of the gradient',
                    )
                )
            axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
            axis.set_title(f'{name}, stage {level}\n{", ".join(sides)} pixels', fontsize=10)
            axis.set_xlabel('pixels', fontsize=9)
    figure.colorbar(drawn, ax=axes, label='gradient / largest, power of ten', shrink=0.8)
    legend_below(figure, order=[f'square that holds {share:.0%} of the gradient' for share in SHARES])
    return save_png(figure, path)
