"""The one writer of Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """A Markdown table with aligned columns: the first ``texts`` hold text, the others numbers, flush right.

    Rich, which draws our progress bars, has ``box.MARKDOWN`` too, but neither ``---:`` nor unlimited width.
    """
    lines = [list(head), *map(list, rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ['-' * width if column < texts else '-' * (width - 1) + ':' for column, width in enumerate(widths)]

    def text(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column < texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f'| {" | ".join(padded)} |'

    return '\n'.join(map(text, [lines[0], rule, *lines[1:]]))
