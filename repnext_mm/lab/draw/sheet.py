"""A page for diagrams: boxes with text, arrows, sums and kernels, placed in inches from the upper left corner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from repnext_mm.lab.draw.canvas import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.patches import Patch
    from matplotlib.text import Text

INK, FAINT = COLORS['ink'], COLORS['faint']
FILLS = {
    'conv': '#cfe0f4',
    'depthwise': '#d5ecd4',
    'pointwise': '#e2daf1',
    'norm': '#fdf0c4',
    'act': '#fbdcc8',
    'tensor': '#f4f4f4',
    'pass': '#e6e6e6',
    'stage': '#d5ecd4',
    'frame': '#fafafa',
}
_FONT = 9.0


class Box(NamedTuple):
    """Where a box is: its middle and its sizes."""

    x: float
    y: float
    width: float
    height: float

    @property
    def top(self) -> tuple[float, float]:
        return self.x, self.y - self.height / 2

    @property
    def bottom(self) -> tuple[float, float]:
        return self.x, self.y + self.height / 2

    @property
    def left(self) -> tuple[float, float]:
        return self.x - self.width / 2, self.y

    @property
    def right(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y


class Sheet:
    """A figure of ``width`` x ``height`` inches; y grows downwards.

    ``texts`` are all texts with the patch that must hold them, or ``None``: a test checks that they fit.
    """

    def __init__(self, width: float, height: float, title: str) -> None:
        self.figure = new_figure((width, height), layout=None)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()
        self.texts: list[tuple[Text, Patch | None]] = []
        self.text(width / 2, 0.3, title, size=13)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = _FONT,
        color: str = INK,
        bold: bool = False,
        align: str = 'center',
        inside: Patch | None = None,
    ) -> None:
        """Words around a point."""
        artist = self.axes.text(
            x,
            y,
            words,
            ha=align,
            va='center',
            fontsize=size,
            color=color,
            fontweight='bold' if bold else 'normal',
            linespacing=1.15,
        )
        self.texts.append((artist, inside))

    def box(
        self, x: float, y: float, width: float, height: float, words: str, kind: str, *, size: float = _FONT
    ) -> Box:
        """A box with words around a point; ``kind`` is a key of ``FILLS``."""
        from matplotlib.patches import FancyBboxPatch

        patch = FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle='round,pad=0,rounding_size=0.06',
            facecolor=FILLS[kind],
            edgecolor=INK,
            linewidth=0.9,
            zorder=2,
        )
        self.axes.add_patch(patch)
        self.text(x, y, words, size=size, inside=patch)
        return Box(x, y, width, height)

    def frame(self, x: float, y: float, width: float, height: float, title: str) -> None:
        """A panel from its upper left corner, with a title."""
        from matplotlib.patches import FancyBboxPatch

        self.axes.add_patch(
            FancyBboxPatch(
                (x, y),
                width,
                height,
                boxstyle='round,pad=0,rounding_size=0.1',
                facecolor=FILLS['frame'],
                edgecolor='#bbbbbb',
                linewidth=0.8,
                zorder=0,
            )
        )
        self.text(x + width / 2, y + 0.22, title, size=10.5, bold=True)

    def arrow(self, *points: tuple[float, float], head: bool = True) -> None:
        """A line through points, with a head at the last."""
        from matplotlib.patches import FancyArrowPatch

        xs, ys = zip(*(points[:-1] if head and len(points) > 2 else points), strict=True)
        if len(points) > 2 or not head:
            self.axes.plot(xs, ys, color=INK, linewidth=1, zorder=1, solid_joinstyle='round')
        if head:
            self.axes.add_patch(
                FancyArrowPatch(
                    points[-2],
                    points[-1],
                    arrowstyle='-|>',
                    mutation_scale=8,
                    color=INK,
                    linewidth=1,
                    shrinkA=0,
                    shrinkB=0,
                    zorder=1,
                )
            )

    def circle(self, x: float, y: float, sign: str = '+') -> Box:
        """A small circle with a sign."""
        from matplotlib.patches import Circle

        self.axes.add_patch(Circle((x, y), 0.13, facecolor='white', edgecolor=INK, linewidth=1, zorder=3))
        self.axes.text(x, y, sign, ha='center', va='center_baseline', fontsize=11, color=INK, zorder=4)
        return Box(x, y, 0.26, 0.26)

    def kernel(
        self,
        x: float,
        y: float,
        pattern: Tensor,
        *,
        cell: float,
        color: str = '#3f8f4f',
        words: str = '',
        size: float = 8.0,
    ) -> Box:
        """A window of cells around a point: ``pattern`` ``(h, w)`` is 0 where the kernel has no weight, up to 1."""
        rows, columns = pattern.shape
        width, height = cell * columns, cell * rows
        self.axes.pcolormesh(
            [x - width / 2 + cell * i for i in range(columns + 1)],
            [y - height / 2 + cell * i for i in range(rows + 1)],
            pattern.numpy(),
            cmap=_from_white(color),
            vmin=0,
            vmax=1,
            edgecolors='#9a9a9a',
            linewidth=0.4,
            zorder=2,
        )
        if words:
            self.text(x, y + height / 2 + 0.1 + 0.065 * (words.count('\n') + 1), words, size=size)
        return Box(x, y, width, height)

    def channels(self, x: float, y: float, width: float, height: float, parts: Sequence[tuple[float, str]]) -> None:
        """A bar of channels from its upper left corner, in colored parts of the given shares."""
        from matplotlib.patches import Rectangle

        for share, color in parts:
            self.axes.add_patch(
                Rectangle((x, y), width * share, height, facecolor=color, edgecolor=INK, linewidth=0.8, zorder=2)
            )
            x += width * share


def _from_white(color: str) -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list('weights', ['white', color])
