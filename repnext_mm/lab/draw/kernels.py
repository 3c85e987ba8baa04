"""Effective kernels: every linear branch of every re-parameterized block, and the one kernel that they equal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from repnext_mm.errors import UserError
from repnext_mm.lab.draw.canvas import COLORS, new_grid, save_png
from repnext_mm.models import ChunkConv, RepDWConvM, RepDWConvS
from repnext_mm.models.repnext_u import SummedUnit
from repnext_mm.reparam import Kernel, as_float64, chain_biased, embed, kernel_of

_CELL = 0.85  # inches of a panel
_TITLE = 7.5  # inches that the title needs


@torch.no_grad()
def effective_kernels(backbone: nn.Module) -> dict[str, dict[str, Kernel]]:
    """The branches of every re-parameterized module by their names, and as ``'='`` the one kernel that they equal.

    Kernels are float64 and each in its own window. The large scale's two convolutions are a chain; its ``'='`` is what
    they are where the border is further away than 5 rows.

    Raises:
        UserError: the backbone has no such module, or a norm that belongs to a branch is in training mode.
    """
    found: dict[str, dict[str, Kernel]] = {}
    for name, module in backbone.named_modules():
        if isinstance(module, RepDWConvS | RepDWConvM | SummedUnit):
            module = as_float64(module).requires_grad_(False)
            found[name] = {**module.branch_kernels(), '=': module.kernel()}
        elif isinstance(module, ChunkConv):
            row, col = (
                kernel_of(cast(nn.Conv2d, conv))
                for conv in as_float64(cast(nn.Sequential, module.conv_l)).requires_grad_(False)
            )
            found[f'{name}.conv_l'] = {'1x11': row, '11x1': col, '=': chain_biased(row, col)[0]}
    if not any(not name.endswith('.conv_l') for name in found):
        raise UserError(
            f'{type(backbone).__name__} has no branches: give weights in train form, of m0 to m5 or RepNeXtU u2, u3'
        )
    return found


def draw_kernels(
    backbone: nn.Module,
    path: str | Path,
    *,
    title: str,
    stages: Sequence[int] | None = None,
    channel: int | None = None,
) -> Path:
    """Save the kernels of every re-parameterized block: a row for each block, a panel for each branch.

    Args:
        backbone: in train form and eval mode.
        path: of the PNG.
        title: of the image.
        stages: only these, counted from 0; all by default.
        channel: of each kernel, drawn with its sign; by default the mean of the absolute values over the channels.

    Raises:
        UserError: the backbone has no branches, the stages have none, or a kernel has no such channel.
    """
    blocks = _by_block(effective_kernels(backbone), stages)
    widths = _widths([*blocks.values()])
    columns = sum(widths)
    values = 'mean absolute weight over the channels' if channel is None else f'weight of channel {channel}'
    figure, axes = new_grid(
        len(blocks),
        columns,
        (max(_CELL * (columns + 1.6), _TITLE), (_CELL + 0.28) * len(blocks) + 1.4),
        (
            f'{title}\n{values}, each panel scaled to its largest; gray: no weight\n'
            '"=": the one kernel that the branches before it equal'
        ),
    )
    for line, (name, scales) in zip(axes, blocks.items(), strict=True):
        line[0].text(-0.25, 0.5, _row_name(name), transform=line[0].transAxes, ha='right', va='center', fontsize=8)
        end = 0
        for kernels, width in zip(scales, widths, strict=False):
            start, end = end, end + width
            size = kernels['='].weight.shape[2:]
            for place, (branch, kernel) in enumerate(kernels.items(), start=start):
                axis = line[end - 1 if branch == '=' else place]  # sums stand in one column
                _draw(axis, kernel, branch, size=size, channel=channel)
    _legend(figure, axes, channel)
    return save_png(figure, path)


def _by_block(
    kernels: dict[str, dict[str, Kernel]], stages: Sequence[int] | None
) -> dict[str, list[dict[str, Kernel]]]:
    """The modules of a block or of a downsampling together."""
    blocks: dict[str, list[dict[str, Kernel]]] = {}
    for name, found in kernels.items():
        block = name.split('.token_mixer')[0].removesuffix('.feature')
        words = block.split('.')
        if stages is None or (words[1:2] and words[1].isdigit() and int(words[1]) in stages):
            blocks.setdefault(block, []).append(found)
    if not blocks:
        raise UserError(f'stages {list(stages or ())} have no branches: choose from 0 to 3')
    return {block: sorted(found, key=lambda branches: branches['='].weight.shape[2]) for block, found in blocks.items()}


def _row_name(block: str) -> str:
    stage, *_, last = block.removeprefix('stages.').split('.')
    return f'stage {stage}\n{"block " if last.isdigit() else ""}{last}'


def _widths(blocks: Sequence[list[dict[str, Kernel]]]) -> list[int]:
    """Columns for each scale, the same in all rows."""
    return [max(map(len, scales)) for scales in zip_longest(*blocks, fillvalue={})]


def _draw(axis: Any, kernel: Kernel, name: str, *, size: Sequence[int], channel: int | None) -> None:
    weight = embed(Kernel(kernel.weight, None), size).weight
    if channel is not None and not 0 <= channel < len(weight):
        raise UserError(f'channel {channel}: this kernel has channels 0 to {len(weight) - 1}')
    value = weight.abs().mean(dim=(0, 1)) if channel is None else weight[channel, 0]
    limit = value.abs().max().item() or 1.0
    value = value.where((weight != 0).any(dim=0)[0], torch.nan)  # what the branch has no weight for
    signed = {'cmap': 'RdBu_r', 'vmin': -limit} if channel is not None else {'cmap': 'magma_r', 'vmin': 0}
    axis.set_axis_on()
    axis.set_facecolor(COLORS['absent'])
    axis.imshow(value.numpy(), vmax=limit, **signed)
    axis.set(xticks=[], yticks=[])
    axis.set_title(
        f'= {"x".join(map(str, size))}' if name == '=' else name,
        fontsize=8,
        pad=2,
        fontweight='bold' if name == '=' else 'normal',
    )


def _legend(figure: Any, axes: Any, channel: int | None) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colors = ScalarMappable(
        Normalize(-1 if channel is not None else 0, 1), 'RdBu_r' if channel is not None else 'magma_r'
    )
    height = figure.get_figheight()
    figure.colorbar(
        colors,
        ax=axes,
        location='bottom',
        fraction=0.3 / height,
        pad=0.3 / height,
        aspect=60,
        shrink=0.5,
        label='weight / largest weight of the panel',
    )
