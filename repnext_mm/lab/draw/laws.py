"""The laws as images of kernels: a sum of branches, a chain and its border, a shortcut that becomes channels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from repnext_mm.errors import UserError
from repnext_mm.lab.draw.canvas import COLORS, legend_below, new_figure, new_grid, save_png
from repnext_mm.models import ChunkConv, RepDWConvM, RepDWConvS
from repnext_mm.models.mixer_forms import DenseMixer
from repnext_mm.reparam import Kernel, as_float64, chain_biased, eliminate_shortcut, embed, kernel_of, to_conv
from repnext_mm.reparam.kernel import convolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAP = 'RdBu_r'
_NO_WEIGHT, _COPY, _WEIGHT = 'white', COLORS['blue'], COLORS['orange']
_SIDE = 2.6  # inches of a panel
_EDGE = 24  # pixels of the image that shows the border


def mixer_of(backbone: nn.Module, block: str, *, channel: int) -> ChunkConv:
    """The token mixer of a block.

    Args:
        backbone: a RepNeXt in train form.
        block: its name, such as ``'stages.2.blocks.4'``.
        channel: one of those that its scales must have.

    Raises:
        UserError: there is no such block or channel.
    """
    mixer = dict(backbone.named_modules()).get(f'{block}.token_mixer')
    if not isinstance(mixer, ChunkConv) or not isinstance(mixer.conv_s, RepDWConvS):
        raise UserError(f"--block {block} is not a block of RepNeXt in train form: try 'stages.0.blocks.0'")
    channels = mixer.conv_s.conv_3_3.in_channels
    if not 0 <= channel < channels:
        raise UserError(f'--channel {channel}: the scales have channels 0 to {channels - 1}')
    return mixer


@torch.no_grad()
def draw_sum(mixer: ChunkConv, path: str | Path, *, channel: int = 0) -> None:
    """The small and the medium scale of a mixer: each branch in its window, and their sum, for one channel."""
    small, medium = cast(RepDWConvS, as_float64(mixer.conv_s)), cast(RepDWConvM, as_float64(mixer.conv_m))
    figure, axes = new_grid(
        2,
        6,
        (6 * _SIDE, 2 * _SIDE + 1.3),
        'Branches of the small and of the medium scale, and the one kernel that they equal\n'
        '(red is positive, blue negative, strongest at the largest value of the row)',
    )
    for line, scale, size in zip(axes, (small, medium), (3, 7), strict=True):
        window = (size, size)
        drawn = {**scale.branch_kernels(), f'= one {size}x{size}': scale.kernel()}
        limit = max(kernel.weight[channel].abs().max().item() for kernel in drawn.values())
        for place, (name, kernel) in enumerate(drawn.items()):
            axis = line[place]
            _draw_kernel(axis, kernel, window, channel=channel, limit=limit, holes=name.startswith('2x2'))
            axis.set_title(name if place == 0 or name.startswith('=') else f'+ {name}', fontsize=12)
    save_png(figure, path)


@torch.no_grad()
def draw_chain(mixer: ChunkConv, path: str | Path, *, channel: int = 0) -> None:
    """The large scale's pair as one kernel, and what that misses along the border because the first has a bias."""
    row, col = (cast(nn.Conv2d, conv) for conv in as_float64(cast(nn.Sequential, mixer.conv_l)))
    wide, border = chain_biased(kernel_of(row), kernel_of(col))
    x = torch.randn(8, row.in_channels, _EDGE, _EDGE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pair = col(row(x))
    like = nn.Conv2d(row.in_channels, row.in_channels, 11, padding=5, groups=row.in_channels).double()
    errors = {
        'one 11x11 alone': convolve(x, wide, like=like) - pair,
        'corrected': DenseMixer(to_conv(wide, like=like), to_conv(border, like=col))(x) - pair,
    }
    title = 'A biased 1x11 before an 11x1: one 11x11, and a correction of five rows at each edge'
    figure, axes = new_grid(1, 4, (4 * _SIDE, _SIDE + 0.9), title)
    limit = max(kernel.weight[channel].abs().max().item() for kernel in (kernel_of(row), kernel_of(col), wide))
    for axis, name, kernel in zip(
        axes[0], ('1x11', '11x1', '11x11'), (kernel_of(row), kernel_of(col), wide), strict=False
    ):
        _draw_kernel(axis, kernel, (11, 11), channel=channel, limit=limit)
        axis.set_title({'11x1': 'then 11x1', '11x11': '= one 11x11'}.get(name, name), fontsize=12)
    _draw_errors(axes[0][3], {name: error.abs().amax(dim=(0, 1, 3)) for name, error in errors.items()})
    save_png(figure, path)


def draw_shortcut(path: str | Path, *, channels: int = 3) -> None:
    """Which weights are trained, copied or zero before and after shortcut elimination, as matrices of channels."""
    generator = torch.Generator().manual_seed(0)

    def kernel(outputs: int, inputs: int, size: int) -> Kernel:
        return Kernel(torch.randn(outputs, inputs, size, size, generator=generator), None)

    before = (kernel(channels, 1, 3), kernel(4 * channels, channels, 1), kernel(channels, 4 * channels, 1))
    after = eliminate_shortcut(*before)
    figure = new_figure(
        (9.4, 6.4),
        (
            'gelu(x) + project(gelu(expand(spatial(x)))), before and after its shortcut became channels\n'
            f'({channels} channels; a row for each output, a column for each input)'
        ),
    )
    axes = figure.subplots(2, 3, width_ratios=(2, 2, 5), height_ratios=(4, 5))
    for line, kernels, when, height in zip(axes, (before, after), ('before', 'after'), (4, 5), strict=True):
        for axis, name, value, width in zip(line, ('spatial', 'expand', 'project'), kernels, (2, 2, 5), strict=True):
            _draw_roles(axis, roles_of(value, spatial=name == 'spatial', inputs=channels))
            axis.set(xlim=(-0.1, width * channels + 0.1), ylim=(height * channels + 0.1, -0.1))  # cells of one size
            axis.set_title(f'{when}: {name}', fontsize=12, loc='left')
    from matplotlib.patches import Patch

    parts = {'trained weights': _WEIGHT, 'a copy of the input (weight 1)': _COPY, 'zero': _NO_WEIGHT}
    handles = [Patch(facecolor=color, edgecolor='gray', label=name) for name, color in parts.items()]
    legend_below(figure, handles=handles)
    save_png(figure, path)


def roles_of(kernel: Kernel, *, spatial: bool, inputs: int) -> Tensor:
    """``(O, I)``: 0 where nothing is read, 1 for a copy, 2 for weights."""
    weight = kernel.weight.flatten(2) if not spatial else kernel.weight.flatten(1)
    if spatial:  # depthwise: an output reads the input of its group
        role = torch.where((weight != 0).sum(1) == 1, 1, 2)
        roles = torch.zeros(len(weight), inputs, dtype=role.dtype)
        per_group = len(weight) // inputs
        roles[torch.arange(len(weight)), torch.arange(len(weight)) // per_group] = role
        return roles
    value = weight[:, :, 0]
    return torch.where(value == 0, 0, torch.where(value == 1, 1, 2))


def _draw_roles(axis: Axes, roles: Tensor) -> None:
    from matplotlib.colors import ListedColormap

    colors = ListedColormap([_NO_WEIGHT, _COPY, _WEIGHT])
    axis.pcolormesh(roles.numpy(), cmap=colors, vmin=0, vmax=2, edgecolors='lightgray', linewidth=0.6)
    axis.set_aspect('equal', anchor='NW')
    axis.set_axis_off()


def _draw_kernel(
    axis: Axes, kernel: Kernel, window: tuple[int, int], *, channel: int, limit: float, holes: bool = False
) -> None:
    """One channel centered in its window; ``holes``: a zero is a cell that the branch does not have."""
    present = embed(Kernel(torch.ones_like(kernel.weight), None), window).weight[channel, 0].bool()
    value = embed(kernel, window).weight[channel, 0]
    if holes:
        present &= value != 0
    axis.set_axis_on()
    axis.set_facecolor(COLORS['absent'])
    axis.imshow(value.where(present, torch.nan).numpy(), cmap=_MAP, vmin=-limit, vmax=limit)
    axis.set_xticks([x - 0.5 for x in range(window[1] + 1)], [''] * (window[1] + 1))
    axis.set_yticks([y - 0.5 for y in range(window[0] + 1)], [''] * (window[0] + 1))
    axis.grid(color='white', linewidth=0.8)
    axis.tick_params(length=0)


def _draw_errors(axis: Axes, errors: Mapping[str, Tensor]) -> None:
    for (name, error), color in zip(errors.items(), (COLORS['red'], COLORS['teal']), strict=True):
        axis.semilogy(error.clamp(min=1e-18).numpy(), marker='o', markersize=3, color=color, label=name)
    axis.set_axis_on()
    axis.set_title('error by row, float64', fontsize=12)
    axis.set_xlabel(f'row of a {_EDGE}x{_EDGE} image')
    axis.set_ylabel('largest absolute error')
    axis.set_box_aspect(1)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc='center')
