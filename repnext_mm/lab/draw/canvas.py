"""Figures without a window, the PNG files they become, and the colors that all of them use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repnext_mm.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {
    'red': '#c1272d',
    'blue': '#0000a7',
    'teal': '#008176',
    'orange': '#e08a3c',
    'purple': '#8b5fbf',
    'green': '#5a8f29',
    'pink': '#c77cbb',
    'gray': '#999999',
    'ink': '#222222',
    'faint': '#777777',
    'absent': '#e4e4e4',  # cells that a kernel does not have
}


def new_figure(inches: tuple[float, float], title: str | None = None, *, layout: Any = 'constrained') -> Figure:
    """An empty figure, with a title; not pyplot's, which keeps figures and may open windows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=110, layout=layout)
    if title is not None:
        figure.suptitle(title, fontsize=12)
    return figure


def new_grid(rows: int, columns: int, inches: tuple[float, float], title: str) -> tuple[Figure, Any]:
    """A figure and its axes ``(rows, columns)``, none of which is drawn yet."""
    figure = new_figure(inches, title)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes


def legend_below(figure: Figure, *, order: Iterable[str] = (), columns: int = 4, handles: Sequence[Any] = ()) -> None:
    """One legend under all axes: of the handles, or of what was drawn under the names of ``order``, each once."""
    if not handles:
        found = {
            label: handle
            for axis in figure.axes
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        handles = [found[name] for name in order if name in found]
    figure.legend(handles=handles, loc='outside lower center', ncols=columns, fontsize=9, frameon=False)


def save_png(figure: Figure, path: str | Path) -> Path:
    """Write a figure; folders are made.

    Raises:
        UserError: the path does not end in ``.png``.
    """
    path = Path(path)
    if path.suffix.lower() != '.png':
        raise UserError(f"'{path}' is not a PNG file: give a path that ends in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
