"""Figures without a window, and the PNG files they become."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(inches: tuple[float, float], title: str) -> Figure:
    """An empty figure with a title; not pyplot's, which keeps figures and may open windows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=110, layout='constrained')
    figure.suptitle(title, fontsize=12)
    return figure


def save_png(figure: Figure, path: str | Path) -> Path:
    """Write a figure; folders are made.

    Raises:
        ValueError: the path does not end in ``.png``.
    """
    path = Path(path)
    if path.suffix.lower() != '.png':
        raise ValueError(f"'{path}' is no PNG file: give a path that ends in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
