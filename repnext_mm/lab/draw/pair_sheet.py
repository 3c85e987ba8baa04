"""A sheet of pictures: ground truth and prediction side by side, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from repnext_mm.lab.draw.panels import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAIRS_IN_A_ROW = 2
_INCHES = 3.0  # side of a panel
_OPACITY = 0.55


def draw_sheet(
    pairs: Sequence[tuple[Panel, Panel]],
    *,
    path: str | Path,
    title: str,
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
) -> None:
    """Save pairs of (ground truth, prediction) as one PNG; colours are those of the classes."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = 2 * PAIRS_IN_A_ROW
    rows = -(-len(pairs) // PAIRS_IN_A_ROW)
    figure = Figure(figsize=(columns * _INCHES, rows * _INCHES + 1.2), dpi=110, layout='constrained')
    figure.suptitle(title, fontsize=14)
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axis in axes:
        axis.set_axis_off()
    for place, pair in enumerate(pairs):
        for axis, panel, name in zip(axes[2 * place :], pair, ('ground truth', 'prediction'), strict=False):
            axis.set_title(name, fontsize=11)
            _draw(axis, panel, classes, palette)
    shown = [index for index, name in enumerate(classes) if name != 'background']
    figure.legend(
        handles=[Patch(color=_unit(palette[index]), label=classes[index]) for index in shown],
        loc='outside lower center',
        ncols=min(len(shown), 10),
        frameon=False,
        handlelength=1.0,
        columnspacing=1.2,
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw(axis: Axes, panel: Panel, classes: Sequence[str], palette: Sequence[tuple[int, int, int]]) -> None:
    from matplotlib.patches import Rectangle

    # Grey pictures leave colour to the marks.
    grey = panel.image.mean(axis=2, keepdims=True).repeat(3, axis=2) / 255
    for mark in panel.marks:
        grey[mark.mask] = (1 - _OPACITY) * grey[mark.mask] + _OPACITY * np.array(_unit(palette[mark.label]))
    axis.imshow(grey)
    for mark in panel.marks:
        if mark.box is None:
            continue
        left, top, right, bottom = mark.box
        colour = _unit(palette[mark.label])
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.5))
        name = classes[mark.label].removeprefix('digit ')
        axis.text(
            left,
            max(top, 10) - 2,
            name if mark.score is None else f'{name}: {mark.score:.2f}',
            fontsize=8,
            color='black',
            bbox={'facecolor': colour, 'edgecolor': 'none', 'pad': 1.0},
        )


def _unit(colour: Sequence[int]) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255
