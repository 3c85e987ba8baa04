"""Every law as layers that run and the layers that they become, at the size of a network's middle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repnext_mm.models.heads import TwoHeadLinear
from repnext_mm.models.layers import depthwise
from repnext_mm.models.mixer_forms import DenseMixer
from repnext_mm.reparam import (
    Fusible,
    add,
    affine_of,
    as_float64,
    as_pointwise,
    average_pool,
    chain,
    chain_biased,
    concat,
    concat_grouped,
    dilate,
    eliminate_shortcut,
    embed,
    identity,
    kernel_of,
    norm_after,
    norm_alone,
    norm_before,
    pointwise_after,
    pointwise_before,
    to_conv,
)

C = 64
SHAPE = (1, C, 28, 28)
Layers = Sequence[nn.Module]


@dataclass(frozen=True)
class LawCase:
    """A law as layers, before and after."""

    layers: Callable[[], Layers]  # with their own initial weights
    run: Callable[..., Tensor]  # (x, *layers): the definition
    merged: Callable[..., nn.Module]  # (*layers): the new module, computed by the law
    shape: tuple[int, ...] = SHAPE


class Definition(Fusible):
    """The layers of a case, which fuse by its law."""

    def __init__(self, case: LawCase) -> None:
        super().__init__()
        self.case = case
        self.layers = nn.ModuleList(case.layers())

    def forward(self, x: Tensor) -> Tensor:
        """As defined, layer by layer."""
        return self.case.run(x, *self.layers)

    def fused(self, form: str) -> nn.Module:
        like = next(self.parameters())
        return self.case.merged(*as_float64(self).layers).to(like.device, like.dtype).train(self.training)


def _conv(outputs: int, size: int, *, inputs: int = C, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=bias)


def _wide(size: int) -> nn.Conv2d:
    """Geometry for a merged depthwise convolution; its weights do not count."""
    return depthwise(C, (size, size)).double()


def _repvgg(c3: Any, n3: Any, c1: Any, n1: Any, n0: Any) -> nn.Module:
    kernels = (
        norm_after(kernel_of(c3), affine_of(n3)),
        embed(norm_after(kernel_of(c1), affine_of(n1)), (3, 3)),
        norm_alone(affine_of(n0), size=(3, 3), groups=1),
    )
    return to_conv(add(*kernels), like=c3)


def _dense(row: Any, col: Any) -> nn.Module:
    wide, border = chain_biased(kernel_of(row), kernel_of(col))
    return DenseMixer(to_conv(wide, like=_wide(11)), to_conv(border, like=col))


def _copies(small: Any, large: Any) -> nn.Module:
    kernel, _ = concat_grouped(embed(kernel_of(small), (7, 7)), kernel_of(large), groups=C)
    return to_conv(kernel, like=large)


def _single_branch(spatial: Any, expand: Any, project: Any) -> nn.Module:
    convs = (spatial, expand, project)
    kernels = eliminate_shortcut(*(kernel_of(conv) for conv in convs))
    first, second, third = (to_conv(kernel, like=conv) for kernel, conv in zip(kernels, convs, strict=True))
    return nn.Sequential(first, second, nn.GELU(), third)


def _on_channels(x: Tensor, linear: nn.Module) -> Tensor:
    return linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


LAWS: dict[str, LawCase] = {
    '3x3, then norm: `norm_after`': LawCase(
        lambda: (_conv(C, 3, bias=False), nn.BatchNorm2d(C)),
        lambda x, conv, norm: norm(conv(x)),
        lambda conv, norm: to_conv(norm_after(kernel_of(conv), affine_of(norm)), like=conv),
    ),
    'norm, then 1x1: `norm_before`': LawCase(
        lambda: (nn.BatchNorm2d(C), _conv(C, 1)),
        lambda x, norm, conv: conv(norm(x)),
        lambda norm, conv: to_conv(norm_before(affine_of(norm), kernel_of(conv)), like=conv),
    ),
    'norm, then unpadded 2x2 of stride 2: `norm_before`': LawCase(
        lambda: (nn.BatchNorm2d(C), nn.Conv2d(C, 2 * C, 2, 2)),
        lambda x, norm, conv: conv(norm(x)),
        lambda norm, conv: to_conv(norm_before(affine_of(norm), kernel_of(conv), unpadded=True), like=conv),
    ),
    '3x3 + 3x3: `add`': LawCase(
        lambda: (_conv(C, 3), _conv(C, 3)),
        lambda x, first, second: first(x) + second(x),
        lambda first, second: to_conv(add(kernel_of(first), kernel_of(second)), like=first),
    ),
    '3x3 + 1x1: `embed`, `add`': LawCase(
        lambda: (_conv(C, 3), _conv(C, 1)),
        lambda x, large, small: large(x) + small(x),
        lambda large, small: to_conv(add(kernel_of(large), embed(kernel_of(small), (3, 3))), like=large),
    ),
    '3x3 beside 3x3: `concat`': LawCase(
        lambda: (_conv(C, 3), _conv(C, 3)),
        lambda x, first, second: torch.cat([first(x), second(x)], dim=1),
        lambda first, second: to_conv(concat(kernel_of(first), kernel_of(second)), like=first),
    ),
    'depthwise 3x3 and 7x7, interleaved: `concat_grouped`': LawCase(
        lambda: (depthwise(C, (3, 3)), depthwise(C, (7, 7))),
        lambda x, small, large: torch.stack([small(x), large(x)], dim=2).flatten(1, 2),
        _copies,
    ),
    'x + 3x3: `identity`': LawCase(
        lambda: (_conv(C, 3),),
        lambda x, conv: x + conv(x),
        lambda conv: to_conv(add(kernel_of(conv), identity(C, (3, 3), like=conv.weight, groups=1)), like=conv),
    ),
    'RepVGG: 3x3 + 1x1 + identity, a norm each: `norm_alone`': LawCase(
        lambda: (
            _conv(C, 3, bias=False),
            nn.BatchNorm2d(C),
            _conv(C, 1, bias=False),
            nn.BatchNorm2d(C),
            nn.BatchNorm2d(C),
        ),
        lambda x, c3, n3, c1, n1, n0: n3(c3(x)) + n1(c1(x)) + n0(x),
        _repvgg,
    ),
    '3x3 + average pooling: `average_pool`': LawCase(
        lambda: (_conv(C, 3), nn.AvgPool2d(3, 1, 1)),
        lambda x, conv, pool: conv(x) + pool(x),
        lambda conv, pool: to_conv(
            add(kernel_of(conv), average_pool(C, (3, 3), like=conv.weight, groups=1)), like=conv
        ),
    ),
    'depthwise 3x3 + 2x2 dilated by 2: `dilate`': LawCase(
        lambda: (depthwise(C, (3, 3)), depthwise(C, (2, 2), dilation=2)),
        lambda x, dense, corners: dense(x) + corners(x),
        lambda dense, corners: to_conv(add(kernel_of(dense), dilate(kernel_of(corners), 2)), like=dense),
    ),
    'depthwise 7x7 + (1x7, then 7x1): `chain`': LawCase(
        lambda: (depthwise(C, (7, 7)), depthwise(C, (1, 7), bias=False), depthwise(C, (7, 1))),
        lambda x, square, row, col: square(x) + col(row(x)),
        lambda square, row, col: to_conv(add(kernel_of(square), chain(kernel_of(row), kernel_of(col))), like=square),
    ),
    'depthwise 1x11 with bias, then 11x1: `chain_biased`': LawCase(
        lambda: (depthwise(C, (1, 11)), depthwise(C, (11, 1))),
        lambda x, row, col: col(row(x)),
        _dense,
    ),
    '1x1 without bias, then 3x3: `pointwise_before`': LawCase(
        lambda: (_conv(2 * C, 1, bias=False), _conv(C, 3, inputs=2 * C)),
        lambda x, first, then: then(first(x)),
        lambda first, then: to_conv(pointwise_before(kernel_of(first), kernel_of(then)), like=then),
    ),
    '3x3, then 1x1: `pointwise_after`': LawCase(
        lambda: (_conv(2 * C, 3), _conv(C, 1, inputs=2 * C)),
        lambda x, first, then: then(first(x)),
        lambda first, then: to_conv(pointwise_after(kernel_of(first), kernel_of(then)), like=first),
    ),
    'linear over the channels as 1x1: `as_pointwise`': LawCase(
        lambda: (nn.Linear(C, C),),
        _on_channels,
        lambda linear: to_conv(as_pointwise(kernel_of(linear)), like=_conv(C, 1).double()),
    ),
    'mean of two norms and linear heads: `norm_before`, `average`': LawCase(
        lambda: (TwoHeadLinear(320, 1000),),
        lambda x, heads: heads(x),
        lambda heads: heads.fused('default'),
        (1, 320),
    ),
    'gelu(x) + 1x1(gelu(1x1(depthwise 7x7))): `eliminate_shortcut`': LawCase(
        lambda: (depthwise(C, (7, 7)), _conv(4 * C, 1), _conv(C, 1, inputs=4 * C)),
        lambda x, spatial, expand, project: F.gelu(x) + project(F.gelu(expand(spatial(x)))),
        _single_branch,
    ),
}
