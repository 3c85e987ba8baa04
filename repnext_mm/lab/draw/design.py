"""The design as figures, read from built modules: architecture, single-branch equivalent, transforms side by side."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repnext_mm.errors import UserError
from repnext_mm.lab.draw.canvas import save_png
from repnext_mm.lab.draw.sheet import FAINT, Box, Sheet
from repnext_mm.models import RepNeXt, resolve_arch
from repnext_mm.models.merged_conv import ConvNorm
from repnext_mm.models.repnext import Arch, ChunkConv, CopyConv, Downsample, MetaNeXtBlock, Stage
from repnext_mm.models.token_mixers import RepDWConv

Branch = tuple[nn.Conv2d, ...]  # convolutions one after the other
SCALES = {'pass': '#e6e6e6', 'small': '#8cc5e8', 'medium': '#6fb77c', 'large': '#e8a35c'}
_MERGED = '#555555'
_IMAGE = 224  # pixels of the image whose sizes are shown
_CELL = 0.085  # inches of a kernel's tap


class Mixer(NamedTuple):
    """A part of a token mixer: the channels that it reads and writes, and the branches whose sum it is."""

    scale: str  # a key of SCALES
    inputs: int
    outputs: int
    branches: list[Branch]  # none: the channels pass
    merged: Branch  # what runs in the default deploy form


def draw_design(arch: str | Mapping[str, Any] | Arch, folder: str | Path) -> list[Path]:
    """Save the three figures of an architecture as ``design_*.png``.

    Raises:
        UserError: the architecture is unknown, or is a single-branch one, which has no branches to show.
    """
    resolved = resolve_arch(arch)
    name = f'RepNeXt-{arch.upper()}' if isinstance(arch, str) else 'RepNeXt'
    if resolved.token_mixer == 'single':
        raise UserError(f'{name} is a single-branch equivalent: name the network that it is the equivalent of')
    sheets = {
        'architecture': architecture(resolved, name),
        'equivalent': equivalent(resolved, name),
        'transforms': transforms(resolved, name),
    }
    return [save_png(sheet.figure, Path(folder) / f'design_{key}.png') for key, sheet in sheets.items()]


def architecture(arch: Arch, name: str) -> Sheet:
    """The whole network above; below, the block, the downsampling, and the branches of a block's scales."""
    model = _built(arch)
    sheet = Sheet(14.2, 9.7, f'{name}: the network, its two building blocks, and the branches of a token mixer')
    _macro(sheet, model)
    stage = cast(Stage, model.stages[1])
    block, downsample = cast(MetaNeXtBlock, stage.blocks[0]), cast(Downsample, stage.downsample)
    sheet.frame(0.25, 2.75, 5.1, 6.75, 'MetaNeXt block (C channels)')
    _block(sheet, block, x=2.9, y=3.4)
    sheet.frame(5.5, 2.75, 3.85, 6.75, 'Downsample block (C to 2C channels)')
    _downsample(sheet, downsample, x=7.5, y=3.4)
    sheet.frame(9.5, 2.75, 4.45, 6.75, 'Branches of a block, and their sum')
    y = 3.35
    for part in mixers(block.token_mixer):
        if part.branches:
            y = _branch_column(sheet, part, x=9.75, y=y, width=3.95)
    sheet.text(13.05, y - 0.85, 'light: where only the\nproduct of a chain\nhas a weight', size=8, color=FAINT)
    return sheet


def equivalent(arch: Arch, name: str) -> Sheet:
    """The blocks of the network beside those of its single-branch equivalent, and the kernels in between."""
    multi, single = _built(arch), _built(replace(arch, token_mixer='single'))
    sheet = Sheet(13.4, 9.6, f'{name} and its single-branch equivalent: every scale in one large depthwise kernel')
    for row, (title, place) in enumerate((('block', 'stages.1.blocks.0'), ('downsampling', 'stages.1.downsample'))):
        top = 0.65 + 4.45 * row
        before, after = (model.get_submodule(place) for model in (multi, single))
        one = cast(nn.Conv2d, after.token_mixer)
        sheet.frame(0.25, top, 7.75, 4.3, f'Token mixer of a {title}: the scales as kernels of one window')
        sheet.frame(8.2, top, 4.95, 4.3, f'Single-branch {title}')
        _embedded(sheet, mixers(cast(nn.Module, before.token_mixer)), one, x=0.5, y=top)
        _single(sheet, after, one, x=10.9, y=top + 0.66, after_norm=isinstance(after, Downsample))
    return sheet


def transforms(arch: Arch, name: str) -> Sheet:
    """Chunk and copy convolution, and each scale's branches before and after they are merged."""
    model = _built(arch)
    stage = cast(Stage, model.stages[1])
    block, downsample = cast(MetaNeXtBlock, stage.blocks[0]), cast(Downsample, stage.downsample)
    chunk, copy = mixers(block.token_mixer), mixers(downsample.token_mixer)
    sheet = Sheet(14.2, 9.3, f'{name}: distribute, transform, aggregate; and what each transform is merged into')
    sheet.frame(0.25, 0.65, 4.6, 4.2, 'ChunkConv: split, transform, concatenate')
    _flow(sheet, chunk, x=0.55, y=1.3, width=4.0, copied=False)
    sheet.frame(0.25, 5.0, 4.6, 4.1, 'CopyConv: copy, transform, concatenate')
    _flow(sheet, copy, x=0.55, y=5.65, width=4.0, copied=True)
    sheet.frame(5.0, 0.65, 8.95, 8.45, 'Branches in training, and the convolution that runs')
    y = 1.15
    for where, part in [*(('block', part) for part in chunk), ('downsampling', copy[0]), ('downsampling', copy[1])]:
        if part.branches:
            y = _branch_row(sheet, part, where, x=5.2, y=y)
    sheet.text(13.8, 8.9, 'light: where only the product of a chain has a weight', size=8, color=FAINT, align='right')
    return sheet


def mixers(token_mixer: nn.Module) -> list[Mixer]:
    """The parts of a token mixer in the order of its channels."""
    if isinstance(token_mixer, ChunkConv):
        small, medium, large = token_mixer.conv_s, token_mixer.conv_m, token_mixer.conv_l
        quarter = branches_of(small)[0][0].in_channels
        return [
            Mixer('pass', quarter, quarter, [], ()),
            _mixer('small', small),
            _mixer('medium', medium),
            _mixer('large', large),
        ]
    assert isinstance(token_mixer, CopyConv)
    return [_mixer('small', token_mixer.conv_s), _mixer('medium', token_mixer.conv_m)]


def branches_of(module: nn.Module) -> list[Branch]:
    """What is added up, by tracing the module's own definition: each branch a chain of convolutions."""
    if not isinstance(module, RepDWConv):
        return [cast(Branch, (module,) if isinstance(module, nn.Conv2d) else tuple(cast(nn.Sequential, module)))]
    definition = _Definition(module)
    graph = fx.Tracer().trace(definition)
    layers = dict(definition.named_modules())

    def chain(node: fx.Node) -> Branch:
        if node.op == 'placeholder':
            return ()
        assert node.op == 'call_module'
        return (*chain(cast(fx.Node, node.args[0])), cast(nn.Conv2d, layers[str(node.target)]))

    def terms(node: fx.Node) -> list[Branch]:
        if node.op == 'call_function' and node.target is operator.add:
            return [branch for term in node.args for branch in terms(cast(fx.Node, term))]
        return [chain(node)]

    (output,) = (node for node in graph.nodes if node.op == 'output')
    return terms(cast(fx.Node, output.args[0]))


def pattern_of(branch: Branch, window: tuple[int, int]) -> Tensor:
    """``(h, w)``: 1 where one of a chain of convolutions has a weight in a window, 0.5 where only their product has.

    It is read off how far an impulse spreads, alone and along the chain.
    """
    impulse = torch.zeros(1, 1, *window)
    impulse[0, 0, window[0] // 2, window[1] // 2] = 1

    def spread(x: Tensor, conv: nn.Conv2d) -> Tensor:
        ones, padding = torch.ones(1, 1, *conv.kernel_size), cast(tuple[int, int], conv.padding)
        return F.conv2d(x, ones, padding=padding, dilation=conv.dilation)

    whole, alone = impulse, torch.zeros_like(impulse)
    for conv in branch:
        whole, alone = spread(whole, conv), alone + spread(impulse, conv)
    return torch.where(alone > 0, 1.0, torch.where(whole > 0, 0.5, 0.0))[0, 0]


def words_of(branch: Branch) -> str:
    """Sizes of a chain of convolutions: ``1×7, 7×1``."""
    sizes = ['×'.join(map(str, conv.kernel_size)) + (' dilated' if max(conv.dilation) > 1 else '') for conv in branch]
    return ', '.join(sizes)


def times(channels: int, base: int) -> str:
    """Channels as a multiple of others: ``C/4``, ``C``, ``2C``."""
    share = Fraction(channels, base)
    upper = 'C' if share.numerator == 1 else f'{share.numerator}C'
    return upper if share.denominator == 1 else f'{upper}/{share.denominator}'


class _Definition(nn.Module):
    """A scale as the sum of its branches."""

    def __init__(self, scale: RepDWConv) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale.branches(x)


def _built(arch: Arch) -> RepNeXt:
    with torch.device('meta'):  # shapes without weights
        return RepNeXt(arch).eval()


def _mixer(scale: str, module: nn.Module) -> Mixer:
    branches = branches_of(module)
    merged = branches_of(module.fused('default')) if isinstance(module, RepDWConv) else branches
    return Mixer(scale, branches[0][0].in_channels, branches[0][-1].out_channels, branches, merged[0])


def _window(branches: Sequence[Branch]) -> tuple[int, int]:
    """The smallest window that holds every branch."""
    spans = [
        [sum((conv.kernel_size[axis] - 1) * conv.dilation[axis] for conv in branch) + 1 for axis in (0, 1)]
        for branch in branches
    ]
    return max(height for height, _ in spans), max(width for _, width in spans)


def _size(window: Sequence[int]) -> str:
    return '×'.join(map(str, window))


def _stride(branches: Sequence[Branch]) -> int:
    """Of the whole chain, the same along both axes."""
    strides = {
        tuple(int(torch.tensor([conv.stride[axis] for conv in branch]).prod()) for axis in (0, 1))
        for branch in branches
    }
    ((rows, columns),) = strides
    assert rows == columns
    return rows


def _macro(sheet: Sheet, model: RepNeXt) -> None:
    """Image, stem, stages and what lies between, with the sizes that come out."""
    shapes = [tuple(x.shape[1:]) for x in model(torch.empty(1, model.in_channels, _IMAGE, _IMAGE, device='meta'))]
    stem = list(cast(nn.Sequential, model.stem.stem))
    convs = [layer.conv for layer in stem if isinstance(layer, ConvNorm)]
    lines = [f'{_size(conv.kernel_size)} conv, stride {conv.stride[0]}' for conv in convs]
    y, height = 1.35, 0.95
    parts = [
        (1.0, f'image\n{model.in_channels} × H × W', 'tensor', ''),
        (1.55, 'Stem\n' + f'\n{type(stem[1]).__name__}\n'.join(lines), 'conv', ''),
    ]
    for index, (stage, shape) in enumerate(zip(model.stages, shapes, strict=True), start=1):
        stage = cast(Stage, stage)
        if isinstance(stage.downsample, Downsample):
            parts.append((1.0, 'Down-\nsample\nblock', 'norm', ''))
        assert all(isinstance(block, MetaNeXtBlock) for block in stage.blocks)
        stride = _IMAGE // shape[1]
        size = f'{shape[0]} × H/{stride} × W/{stride}\n({shape[1]} × {shape[2]} at {_IMAGE})'
        parts.append((1.3, f'Stage {index}\n{len(stage.blocks)} ×\nMetaNeXt block', 'stage', size))
    gap = 0.22
    x = (sheet.figure.get_figwidth() - sum(width for width, *_ in parts) - gap * (len(parts) - 1)) / 2
    last: Box | None = None
    for width, words, kind, size in parts:
        box = sheet.box(x + width / 2, y, width, height, words, kind)
        if last is not None:
            sheet.arrow(last.right, box.left)
        if size:
            sheet.arrow(box.bottom, (box.x, box.bottom[1] + 0.2))
            sheet.text(box.x, box.bottom[1] + 0.4, size, size=8.5)
        x, last = x + width + gap, box
    sheet.text(x - gap, y + 1.2, 'levels 1 to 4: what necks and heads read', size=8.5, color=FAINT, align='right')


def _block(sheet: Sheet, block: MetaNeXtBlock, *, x: float, y: float) -> None:
    """A MetaNeXt block from its input at ``(x, y)`` downwards."""
    parts = mixers(block.token_mixer)
    channels = sum(part.outputs for part in parts)
    source = sheet.box(x, y, 1.5, 0.36, 'C × H × W', 'tensor')
    width, gap = 1.0, 0.09
    boxes = []
    left = x - (len(parts) * width + (len(parts) - 1) * gap) / 2
    for part in parts:
        kind = 'depthwise' if part.branches else 'pass'
        words = _mixer_words(part)
        boxes.append(sheet.box(left + width / 2, y + 1.25, width, 0.98, words, kind, size=8.5))
        sheet.text(left + width / 2 + 0.07, y + 0.55, times(part.inputs, channels), size=8.5, color=FAINT, align='left')
        left += width + gap
    joined = sheet.box(x, y + 2.2, 2.2, 0.32, 'concatenate: C', 'tensor')
    _fan(sheet, source, boxes, joined)
    norm = sheet.box(x, y + 2.85, 2.2, 0.36, _norm(block.norm), 'norm')
    sheet.arrow(joined.bottom, norm.top)
    last = _channel_mixer(sheet, block.channel_mixer, norm, base=channels)
    _shortcut(sheet, source.left, last, x=x - 2.42, y=y + 5.45)
    sheet.text(x + 2.35, joined.y, 'token mixer', size=8.5, color=FAINT, align='right')
    sheet.text(x + 2.35, norm.y, 'norm', size=8.5, color=FAINT, align='right')
    sheet.text(x + 2.35, y + 4.15, 'channel\nmixer', size=8.5, color=FAINT, align='right')
    sheet.text(x - 2.0, y + 5.25, 'shortcut', size=8.5, color=FAINT)


def _downsample(sheet: Sheet, block: Downsample, *, x: float, y: float) -> None:
    """A downsampling block from its input at ``(x, y)`` downwards."""
    parts = mixers(block.token_mixer)
    base = parts[0].inputs
    source = sheet.box(x, y, 1.5, 0.36, 'C × H × W', 'tensor')
    boxes = []
    for part, place in zip(parts, (-0.8, 0.8), strict=True):
        boxes.append(sheet.box(x + place, y + 1.25, 1.4, 0.98, _mixer_words(part), 'depthwise', size=8.5))
        sheet.text(x + place + 0.07, y + 0.55, times(part.inputs, base), size=8.5, color=FAINT, align='left')
    out = sum(part.outputs for part in parts)
    stride = _stride(parts[0].branches)
    joined = sheet.box(x, y + 2.2, 2.5, 0.32, f'concatenate: {times(out, base)} × H/{stride} × W/{stride}', 'tensor')
    _fan(sheet, source, boxes, joined)
    norm = sheet.box(x, y + 2.85, 2.5, 0.36, _norm(block.norm), 'norm')
    sheet.arrow(joined.bottom, norm.top)
    last = _channel_mixer(sheet, block.channel_mixer, norm, base=base)
    branching = (x, norm.bottom[1] + 0.13)
    _shortcut(sheet, branching, last, x=x - 1.65, y=y + 5.45)
    sheet.text(x - 1.0, y + 5.25, 'shortcut', size=8.5, color=FAINT)


def _single(sheet: Sheet, block: nn.Module, one: nn.Conv2d, *, x: float, y: float, after_norm: bool) -> None:
    """A block of the single-branch network."""
    block = cast(MetaNeXtBlock | Downsample, block)
    base = one.in_channels
    stride = one.stride[0]
    source = sheet.box(x - 0.2, y, 1.5, 0.34, 'C × H × W', 'tensor')
    words = f'depthwise {_size(one.kernel_size)}, stride {stride}'
    change = '' if one.out_channels == base else f': C → {times(one.out_channels, base)}'
    mixer = sheet.box(x - 0.2, y + 0.56, 3.3, 0.38, words + change, 'depthwise')
    norm = sheet.box(x - 0.2, y + 1.1, 3.3, 0.34, _norm(block.norm), 'norm')
    sheet.arrow(source.bottom, mixer.top)
    sheet.arrow(mixer.bottom, norm.top)
    last = _channel_mixer(sheet, block.channel_mixer, norm, base=base, step=0.5, after_norm=after_norm)
    start = (norm.x, norm.bottom[1] + 0.1) if after_norm else source.left
    _shortcut(sheet, start, last, x=x - 2.2, y=last.y + 0.4)


def _channel_mixer(
    sheet: Sheet, mixer: nn.Sequential, above: Box, *, base: int, step: float = 0.62, after_norm: bool = True
) -> Box:
    """Boxes of a channel mixer below a box; returns the last."""
    first = True
    for layer in mixer:
        if isinstance(layer, ConvNorm):
            conv = layer.conv
            assert conv.kernel_size == (1, 1)
            words = f'1×1, {_norm(layer.norm)}: {times(conv.in_channels, base)} → {times(conv.out_channels, base)}'
            kind = 'pointwise'
        else:
            words, kind = type(layer).__name__, 'act'
        extra = 0.1 if first and after_norm else 0.0
        box = sheet.box(above.x, above.y + step + extra, above.width, 0.36, words, kind)
        sheet.arrow(above.bottom, box.top)
        above, first = box, False
    return above


def _shortcut(sheet: Sheet, start: tuple[float, float], last: Box, *, x: float, y: float) -> None:
    """A line from a point, around at ``x``, to a sum under the last box at ``y``."""
    plus = sheet.circle(last.x, y)
    sheet.arrow(last.bottom, plus.top)
    sheet.arrow(start, (x, start[1]), (x, y), plus.left)
    sheet.arrow(plus.bottom, (plus.x, y + 0.38))


def _fan(sheet: Sheet, source: Box, boxes: Sequence[Box], joined: Box) -> None:
    """Lines from one box to several and from these to one."""
    above, below = source.bottom[1] + 0.13, joined.top[1] - 0.16
    for box in boxes:
        sheet.arrow(source.bottom, (source.x, above), (box.x, above), box.top)
        sheet.arrow(box.bottom, (box.x, below), (joined.x, below), head=False)
    sheet.arrow((joined.x, below), joined.top)


def _mixer_words(part: Mixer) -> str:
    if not part.branches:
        return 'identity'
    stride = _stride(part.branches)
    strided = f', stride {stride}' if stride > 1 else ''
    if len(part.branches) == 1:
        return f'{part.scale}\n' + '\n'.join(
            f'depthwise\n{_size(conv.kernel_size)}' if index == 0 else f'then {_size(conv.kernel_size)}'
            for index, conv in enumerate(part.branches[0])
        )
    return f'{part.scale}\n{len(part.branches)} branches\n= depthwise\n{_size(_window(part.branches))}{strided}'


def _norm(norm: nn.Module) -> str:
    return {'BatchNorm2d': 'BN', 'SyncBatchNorm': 'SyncBN'}.get(type(norm).__name__, type(norm).__name__)


def _branch_column(sheet: Sheet, part: Mixer, *, x: float, y: float, width: float) -> float:
    """The branches of a scale in rows of three, then their sum; returns where the next may begin."""
    window = _window(part.branches)
    cell = {3: 0.18, 11: 0.06}.get(max(window), _CELL)
    drawn = [(words_of(branch), pattern_of(branch, window)) for branch in part.branches]
    if len(drawn) > 1:
        drawn.append((f'sum: {_size(window)}', torch.stack([pattern for _, pattern in drawn]).amax(0)))
    else:
        drawn = [(words_of((conv,)), pattern_of((conv,), window)) for conv in part.branches[0]]
    columns, summed = 3, len(part.branches) > 1
    step = width / columns
    pitch = cell * window[0] + 0.42
    what = f'{len(part.branches)} branches' if summed else 'one after the other'
    sheet.text(x, y, f'{part.scale}: {what}', size=9, bold=True, align='left')
    top = y + 0.25
    for index, (words, pattern) in enumerate(drawn):
        row, column = divmod(index, columns)
        middle = (x + step * (column + 0.5), top + pitch * row + cell * window[0] / 2)
        last = index == len(drawn) - 1
        sheet.kernel(*middle, pattern, cell=cell, color=_MERGED if last and summed else SCALES[part.scale], words=words)
        if not last:
            sign = '→' if not summed else '=' if index == len(drawn) - 2 else '+'
            sheet.text(x + step * (column + 1), middle[1], sign, size=12)
    rows = -(-len(drawn) // columns)
    return top + pitch * rows + 0.12


def _branch_row(sheet: Sheet, part: Mixer, where: str, *, x: float, y: float) -> float:
    """The branches of a scale in a row, then what runs; returns where the next row begins."""
    window = (7, 7) if part.scale != 'large' else (11, 11)
    own = _window(part.branches)
    window = (max(window[0], own[0]), max(window[1], own[1]))
    cell = _CELL
    height = cell * window[0]
    middle = y + 0.1 + height / 2
    stride = _stride(part.branches)
    sheet.text(x + 0.02, middle - 0.1, f'{part.scale}', size=10, bold=True, align='left')
    sheet.text(x + 0.02, middle + 0.12, f'{where},\nstride {stride}', size=8, color=FAINT, align='left')
    step, left = 1.12, x + 1.5
    one = part.branches[0] if len(part.branches) == 1 else None
    columns: list[tuple[str, Tensor]] = (
        [(_size(conv.kernel_size), pattern_of((conv,), window)) for conv in one]
        if one is not None
        else [(words_of(branch), pattern_of(branch, window)) for branch in part.branches]
    )
    for index, (words, pattern) in enumerate(columns):
        at = left + step * index
        sheet.kernel(at, middle, pattern, cell=cell, color=SCALES[part.scale], words=words, size=7.5)
        if index:
            sheet.text(at - step / 2, middle, '→' if one is not None else '+', size=12)
    if one is not None:
        sheet.text(
            left + step * len(columns) - 0.25,
            middle,
            'the first has a bias: merged, the rows along\nthe border would be wrong, so both run as they are\n'
            '(form "dense": one 11×11 and a correction)'
            if one[0].bias is not None
            else 'both run as they are',
            size=8,
            align='left',
        )
    else:
        at = left + step * 5 + 0.85
        sheet.arrow((left + step * (len(columns) - 1) + 0.42, middle), (at - 0.42, middle))
        (conv,) = part.merged
        merged = f'{_size(conv.kernel_size)}, stride {conv.stride[0]}'
        sheet.kernel(at, middle, pattern_of(part.merged, window), cell=cell, color=_MERGED, words=merged, size=7.5)
    return y + height + 0.88


def _embedded(sheet: Sheet, parts: Sequence[Mixer], one: nn.Conv2d, *, x: float, y: float) -> None:
    """The kernels of the parts in the window of the one that replaces them."""
    window = cast(tuple[int, int], one.kernel_size)
    cell = 1.1 / window[0]
    middle = y + 1.62
    step = 5.55 / len(parts)
    total = sum(part.outputs for part in parts)
    base = parts[0].inputs if one.out_channels > one.in_channels else total
    for index, part in enumerate(parts):
        at = x + step * (index + 0.5)
        pattern = pattern_of(part.merged, window)
        color = '#888888' if part.scale == 'pass' else SCALES[part.scale]
        words = 'identity: one tap' if not part.branches else f'{part.scale}: {words_of(part.merged)}'
        sheet.kernel(
            at,
            middle,
            pattern,
            cell=cell,
            color=color,
            words=f'{words}\n{times(part.outputs, base)} channels',
            size=8.5,
        )
    at = x + 6.5
    sheet.arrow((at - 0.97, middle), (at - 0.63, middle))
    words = f'one {_size(window)}\n{times(one.out_channels, base)} channels'
    sheet.kernel(at, middle, torch.ones(window), cell=cell, color=_MERGED, words=words, size=8.5)
    weights = sum(
        part.outputs * int((pattern_of(part.merged, window) > 0).sum())
        if len(part.merged) == 1
        else sum(conv.weight.numel() for conv in part.merged)
        for part in parts
        if part.branches
    )
    own = one.weight.numel()
    chained = next((part for part in parts if len(part.merged) > 1), None)
    border = (
        f'\nWhere the {words_of(chained.merged)} pair has a bias, they are equal only away from the border.'
        if chained is not None and chained.merged[0].bias is not None
        else '\nThe outputs come in another order there: small and medium of each channel side by side.'
    )
    sheet.text(
        x + 3.6,
        y + 3.35,
        f'Any such set of kernels is one kernel of the full window with zeros; trained from scratch, no weight\n'
        f'is bound to be zero. Depthwise weights at {total} channels: {weights:,} merged, {own:,} in one.'
        f'{border}',
        size=8.5,
    )


def _flow(sheet: Sheet, parts: Sequence[Mixer], *, x: float, y: float, width: float, copied: bool) -> None:
    """Channels in, a transform for each share, channels out."""
    total = sum(part.outputs for part in parts)
    into = parts[0].inputs if copied else sum(part.inputs for part in parts)
    colors = {**SCALES, 'pass': '#e6e6e6'}
    bar = 0.24
    span = width * 0.5 if copied else width
    whole = '#bcbcbc'
    sheet.text(x, y, 'distribute', size=8.5, color=FAINT, align='left')
    sheet.channels(x + (width - span) / 2, y + 0.15, span, bar, [(1.0, whole)])
    sheet.text(x + width / 2, y + 0.27, f'{times(into, into)} channels', size=8.5)
    step = width / len(parts)
    bottom = y + 2.75
    for index, part in enumerate(parts):
        at = x + step * (index + 0.5)
        start = (x + width / 2 + (at - x - width / 2) * (0.5 if copied else 1.0), y + 0.15 + bar)
        sheet.arrow(start, (at, y + 0.72))
        sheet.channels(at - step * 0.42, y + 0.72, step * 0.84, bar, [(1.0, colors[part.scale])])
        sheet.text(at, y + 0.84, times(part.inputs, into), size=8.5)
        box = sheet.box(
            at,
            y + 1.72,
            min(step * 0.9, 1.6),
            1.0,
            _mixer_words(part),
            'depthwise' if part.branches else 'pass',
            size=8.5,
        )
        sheet.arrow((at, y + 0.72 + bar), box.top)
        sheet.arrow(box.bottom, (at, bottom))
    sheet.channels(x, bottom, width, bar, [(part.outputs / total, colors[part.scale]) for part in parts])
    stride = max((_stride(part.branches) for part in parts if part.branches), default=1)
    size = f' at H/{stride} × W/{stride}' if stride > 1 else ''
    sheet.text(x + width / 2, bottom + bar + 0.17, f'aggregate: {times(total, into)} channels{size}', size=8.5)
