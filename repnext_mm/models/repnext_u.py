"""RepNeXtU: ConvNeXt's layout with re-parameterized units and activated shortcuts, and without a layer norm."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repnext_mm.checkpoints import LoadReport, StateDict, WeightsError, state_dict_of
from repnext_mm.checkpoints.load import fit
from repnext_mm.errors import UserError
from repnext_mm.models.base import StagedBackbone, recomputed, resolve
from repnext_mm.models.layers import (
    add_shortcut,
    called_one_by_one,
    depthwise,
    gelu,
    overwriting,
    stochastic_depth,
    why_not_dropped,
)
from repnext_mm.models.merged_conv import MergedBranches, MergedConv
from repnext_mm.models.registry import register
from repnext_mm.reparam import (
    Fusible,
    Kernel,
    add,
    affine_of,
    as_float64,
    concat,
    eliminate_shortcut,
    embed,
    kernel_of,
    norm_after,
    norm_before,
    to_conv,
)
from repnext_mm.reparam.fusible import fused_or_kept
from repnext_mm.reparam.kernel import is_affine
from repnext_mm.reparam.plain_layers import is_plain, why_called, why_intercepted

WINDOW = (7, 7)
EPS = 1e-6  # of the units' norms


@dataclass(frozen=True)
class UnitArch:
    """Widths and depths of the four stages."""

    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]

    def __post_init__(self) -> None:
        if len(self.dims) != 4 or len(self.depths) != 4 or min(*self.dims, *self.depths) < 1:
            raise UserError(f'dims {self.dims} and depths {self.depths} must have one positive entry per stage: 4')

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the stages, under the name that all networks share."""
        return self.dims


UNIT_ARCHITECTURES: dict[str, UnitArch] = {
    'tiny': UnitArch((96, 192, 384, 768), (3, 3, 9, 3)),
    'small': UnitArch((96, 192, 384, 768), (3, 3, 27, 3)),
    'base': UnitArch((128, 256, 512, 1024), (3, 3, 27, 3)),
}


class RepUnit(MergedBranches):
    """Branches that equal one depthwise 7x7 while their norms use running statistics, which then runs in their place.

    With batch statistics the branches have to run: what a norm subtracts depends on its branch's output.
    """

    if TYPE_CHECKING:  # TorchScript reads annotations
        dwconv1: nn.Conv2d  # 7x7

    @property
    def geometry(self) -> nn.Conv2d:
        return self.dwconv1

    def convolved(self, x: Tensor, kernel: Kernel) -> Tensor:
        padding = (WINDOW[0] // 2, WINDOW[1] // 2)
        return F.conv2d(x, kernel.weight, kernel.bias, padding=padding, groups=len(kernel.weight))

    def fused(self, form: str) -> nn.Module:
        if not self.mergeable():
            return self
        kernel, weight = as_float64(self).kernel(), self.dwconv1.weight
        like = depthwise(len(kernel.weight), WINDOW).to(weight.device, weight.dtype)
        return to_conv(kernel, like=like.train(self.training))


class RepUnit1(RepUnit):
    """A third of the channels for each size, 7x7, 5x5 and 3x3, and one norm of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 3:
            raise UserError(
                f"{channels} channels cannot be cut into three sizes: unit 'u1' needs dims divisible by 3, "
                "choose others, or unit 'u2' or 'u3'"
            )
        self.dwconv1 = depthwise(channels // 3, WINDOW, bias=False)
        self.dwconv2 = depthwise(channels // 3, (5, 5), bias=False)
        self.dwconv3 = depthwise(channels // 3, (3, 3), bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=EPS)
        self._is_built()

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        return (self.norm,)

    def kernel(self) -> Kernel:
        sizes = (embed(kernel_of(conv), WINDOW) for conv in (self.dwconv1, self.dwconv2, self.dwconv3))
        return norm_after(concat(*sizes), affine_of(self.norm))

    def branches(self, x: Tensor) -> Tensor:
        first, second, third = x.chunk(3, dim=1)
        return self.norm(torch.cat([self.dwconv1(first), self.dwconv2(second), self.dwconv3(third)], dim=1))


class SummedUnit(RepUnit):
    """Every channel in three sizes, each with a norm, summed."""

    if TYPE_CHECKING:  # TorchScript reads annotations
        sizes: tuple[tuple[int, int], ...]  # of the second and the third branch

    def __init__(self, channels: int) -> None:
        super().__init__()
        second, third = self.sizes
        self.dwconv1 = depthwise(channels, WINDOW, bias=False)
        self.dwconv2 = depthwise(channels, second, bias=False)
        self.dwconv3 = depthwise(channels, third, bias=False)
        self.norm1 = nn.BatchNorm2d(channels, eps=EPS)
        self.norm2 = nn.BatchNorm2d(channels, eps=EPS)
        self.norm3 = nn.BatchNorm2d(channels, eps=EPS)
        self._is_built()

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        return self.norm1, self.norm2, self.norm3

    def branch_kernels(self) -> dict[str, Kernel]:
        """The kernel of each branch with its norm, under a name that gives its size; each in its own window."""
        branches = zip((self.dwconv1, self.dwconv2, self.dwconv3), self.norms, strict=True)
        return {
            'x'.join(map(str, conv.kernel_size)): norm_after(kernel_of(conv), affine_of(norm))
            for conv, norm in branches
        }

    def kernel(self) -> Kernel:
        return add(*(embed(kernel, WINDOW) for kernel in self.branch_kernels().values()))

    def branches(self, x: Tensor) -> Tensor:
        return self.norm1(self.dwconv1(x)) + self.norm2(self.dwconv2(x)) + self.norm3(self.dwconv3(x))


class RepUnit2(SummedUnit):
    """7x7, 5x5 and 3x3."""

    sizes = ((5, 5), (3, 3))


class RepUnit3(SummedUnit):
    """7x7, 1x5 and 3x1."""

    sizes = ((1, 5), (3, 1))


REP_UNITS: dict[str, type[RepUnit1 | SummedUnit]] = {'u1': RepUnit1, 'u2': RepUnit2, 'u3': RepUnit3}


class UnitBlock(Fusible):
    """``gelu(x) + pwconv2(gelu(pwconv1(feature(x))))``: the shortcut is activated too.

    Fused, its unit is one convolution; outside of training and graph capture, activation and shortcut are then written
    over the convolutions' outputs, unless a hook has seen those: the same numbers, with less memory to fetch.
    """

    forms = (*Fusible.forms, 'no_shortcut')

    def __init__(
        self, feature: nn.Module, pwconv1: nn.Module, pwconv2: nn.Module, drop_path: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.feature = feature
        self.pwconv1 = pwconv1
        self.act = nn.GELU()
        self.pwconv2 = pwconv2
        self.drop_path = drop_path  # None once fused: in eval mode nothing is left of it

    @classmethod
    def train_form(cls, channels: int, feature: RepUnit, *, drop_path: float = 0.0) -> UnitBlock:
        """With a unit of ``channels`` channels, four times as many inside."""
        expand, project = nn.Conv2d(channels, 4 * channels, 1), nn.Conv2d(4 * channels, channels, 1)
        return cls(feature, expand, project, stochastic_depth(drop_path))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        y = self.pwconv1(self.feature(x))
        if self.drop_path is not None:
            return self.act(x) + self.drop_path(self.pwconv2(self.act(y)))
        if not torch.jit.is_scripting():  # scripts write over nothing
            y = self.pwconv2(gelu(y, self.act, made_by=self.pwconv1))
            return add_shortcut(y, self.act(x), made_by=self.pwconv2)
        return self.pwconv2(self.act(y)) + self.act(x)

    def fused(self, form: str) -> nn.Module:
        """A single branch with ``no_shortcut`` (law ``eliminate_shortcut``); other forms keep the shortcut."""
        feature = fused_or_kept(self.feature, form)
        if not isinstance(feature, nn.Conv2d) or any(reason for _, reason in self.obstacles('default')):
            return self
        block = self
        if feature is not self.feature or self.drop_path is not None:
            block = UnitBlock(feature, self.pwconv1, self.pwconv2)
        if form != 'no_shortcut' or any(reason for _, reason in block.obstacles(form)):
            return block
        convs = cast(tuple[nn.Conv2d, ...], (feature, self.pwconv1, self.pwconv2))
        spatial, expand, project = (kernel_of(as_float64(conv)) for conv in convs)
        kernels = eliminate_shortcut(spatial, expand, project)
        return SingleBranch(*(to_conv(kernel, like=conv) for kernel, conv in zip(kernels, convs, strict=True)))

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        if self.drop_path is not None:
            yield self.drop_path, why_not_dropped(self.drop_path)
        if self.drop_path is not None or form == 'no_shortcut':
            yield self.act, why_intercepted(self.act) or ('' if type(self.act) is nn.GELU else 'it is not the GELU')
        if form == 'no_shortcut':
            for conv in (self.feature, self.pwconv1, self.pwconv2):
                yield conv, '' if isinstance(conv, RepUnit) else why_called(conv)


class SingleBranch(Fusible):
    """``UnitBlock`` without a shortcut: nothing but convolutions and an activation, one after the other."""

    def __init__(self, spatial: nn.Conv2d, expand: nn.Conv2d, project: nn.Conv2d) -> None:
        super().__init__()
        self.block = overwriting(nn.Sequential(spatial, expand, nn.GELU(), project))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        return self.block(x)

    def fused(self, form: str) -> nn.Module:
        return self  # what is fused already is a Fusible too: it tells that its backbone is not another library's


class UnitStage(nn.Sequential):
    """Blocks one after the other; with ``with_cp`` each is recomputed in the backward pass, to save memory."""

    def __init__(self, *blocks: nn.Module, with_cp: bool = False) -> None:
        super().__init__(*blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        if not torch.jit.is_scripting():  # scripts recompute nothing
            recompute = self.with_cp and self.training and not called_one_by_one(x)
            if recompute:
                for block in self:
                    x = recomputed(block, x)
                return x
        for block in self:
            x = block(x)
        return x


class PatchStem(MergedConv, nn.Sequential):
    """4x4 patches, then a norm (law ``norm_after``)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(nn.Conv2d(in_channels, channels, 4, 4, bias=False), nn.BatchNorm2d(channels))

    @property
    def geometry(self) -> nn.Conv2d:
        return cast(nn.Conv2d, self[0])

    def kernel(self) -> Kernel:
        return norm_after(kernel_of(self.geometry), affine_of(self[1]))

    def mergeable(self) -> bool:
        return is_affine(self[1]) and is_plain(self[0]) and is_plain(self[1])

    def branches(self, x: Tensor) -> Tensor:
        return self[1](self[0](x))

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        for layer in self if is_affine(self[1]) else ():
            yield layer, why_called(layer)


class PatchMerging(MergedConv, nn.Sequential):
    """A norm, then 2x2 patches, which no padding surrounds (law ``norm_before``)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(nn.BatchNorm2d(in_channels), nn.Conv2d(in_channels, channels, 2, 2))

    @property
    def geometry(self) -> nn.Conv2d:
        return cast(nn.Conv2d, self[1])

    def kernel(self) -> Kernel:
        return norm_before(affine_of(self[0]), kernel_of(self.geometry), unpadded=True)

    def mergeable(self) -> bool:
        norm, conv = self
        return is_affine(norm) and is_plain(norm) and is_plain(conv) and conv.padding == (0, 0)

    def branches(self, x: Tensor) -> Tensor:
        return self[1](self[0](x))

    def obstacles(self, form: str) -> Iterator[tuple[nn.Module, str]]:
        norm, conv = self
        if is_affine(norm):
            yield norm, why_called(norm)
            yield conv, why_called(conv) or ('' if conv.padding == (0, 0) else 'its geometry was changed')


@register()
class RepNeXtU(StagedBackbone):
    """RepNeXt-u1, -u2 and -u3: patches, and blocks ``gelu(x) + mlp(unit(x))`` on a multi-branch depthwise unit.

    No relation to ``RepNeXt`` but the name. Names of weights are its authors'; their classifier's files load into the
    train form, without the head and the unused ``conv_repara`` that they carry along. Sizes round down: an edge of the
    image that fills no patch is not seen.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, or a dict with ``dims`` and ``depths``.
        unit: ``'u1'`` (a third of the channels for each of 7x7, 5x5, 3x3), ``'u2'`` (the three sizes summed) or
            ``'u3'`` (7x7, 1x5 and 3x1 summed).
        in_channels: channels of the image.
        out_indices: the stages to return, in ascending order.
        frozen_stages: ``-1`` freezes nothing, ``0`` the stem, ``k`` the stem and the first ``k`` stages.
        drop_path_rate: stochastic depth rate of the last block; it grows linearly from 0.
        norm_eval: keep batch norms (SyncBN included) in eval mode while training; they are then folded on the fly.
        with_cp: recompute activations in the backward pass to save memory.
        deploy: build the deploy form, for inference with a fused checkpoint.
        keep_shortcut: for the deploy form that ``deploy`` and ``switch_to_deploy`` make. Without shortcuts a block is a
            plain chain of layers, with almost twice the weights. ``reparam.fuse(model, form='no_shortcut')`` too.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE, prefix=None, ema=False, trust_pickle=False)`` loads a file
            strictly, heads and necks left out; other entries are mmengine's.
        pretrained: not supported; present because stock mmseg configs set it.

    Raises:
        ValueError: an argument does not make a RepNeXtU.
    """

    if TYPE_CHECKING:  # TorchScript reads annotations
        downsample_layers: nn.ModuleList
        stages: nn.ModuleList

    def __init__(
        self,
        arch: str | Mapping[str, Any] | UnitArch = 'tiny',
        unit: str = 'u3',
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        drop_path_rate: float = 0.0,
        norm_eval: bool = False,
        with_cp: bool = False,
        deploy: bool = False,
        keep_shortcut: bool = True,
        init_cfg: dict | list[dict] | None = None,
        *,
        pretrained: None = None,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            drop_path_rate=drop_path_rate,
            norm_eval=norm_eval,
            switches={'with_cp': with_cp, 'deploy': deploy, 'keep_shortcut': keep_shortcut},
            init_cfg=init_cfg,
            pretrained=pretrained,
        )
        if unit not in REP_UNITS:
            raise UserError(f'unknown unit {unit!r}: choose one of {", ".join(REP_UNITS)}')
        self.arch = resolve(arch, UNIT_ARCHITECTURES)
        self.unit = unit
        self.keep_shortcut = keep_shortcut
        self._assemble(partial(self._build, drop_path_rate, with_cp), deploy=deploy)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def parts(self) -> list[list[nn.Module]]:
        stem, *between = self.downsample_layers
        first, *stages = self.stages
        return [[stem], [first], *([layer, stage] for layer, stage in zip(between, stages, strict=True))]

    def levels(self, x: Tensor) -> list[Tensor]:
        found = []
        for downsample, stage in zip(self.downsample_layers, self.stages):  # noqa: B905 - TorchScript knows no strict
            x = stage(downsample(x))
            found.append(x)
        return found

    def place_of(self, name: str) -> tuple[int, int]:
        found = re.match(r'(?:downsample_layers\.(\d+)|stages\.(\d+)\.(\d+))\.', name)
        if not found or found[1] == '0':
            return -1, 0
        return int(found[1] or found[2]), int(found[3] or 0)

    def deploy_form(self) -> str:
        return 'default' if self.keep_shortcut else 'no_shortcut'

    def fitted(
        self, content: Mapping[str, Any], *, source: str, prefix: str | None, ema: bool
    ) -> tuple[StateDict, LoadReport]:
        own = self.state_dict()
        try:
            return fit(
                content,
                own,
                name=type(self).__name__,
                source=source,
                prefix=prefix,
                ema=ema,
                part=True,
                unused=['conv_repara'],  # the authors' train form has a dead 7x7
            )
        except WeightsError as error:
            found, wanted = _form(state_dict_of(content, prefix=prefix, ema=ema)), _form(own)
            if found and found != wanted:
                raise WeightsError(f'{source} holds {found}, this backbone is {wanted}: {_HOW[found]}') from error
            raise

    def _build(self, drop_path_rate: float, with_cp: bool) -> None:
        dims, depths = self.arch.dims, self.arch.depths
        rates = torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist()
        merging = (PatchMerging(before, after) for before, after in pairwise(dims))
        self.downsample_layers = nn.ModuleList([PatchStem(self.in_channels, dims[0]), *merging])
        self.stages = nn.ModuleList(
            UnitStage(
                *(
                    UnitBlock.train_form(width, REP_UNITS[self.unit](width), drop_path=rates.pop(0))
                    for _ in range(depth)
                ),
                with_cp=with_cp,
            )
            for width, depth in zip(dims, depths, strict=True)
        )


_HOW = {
    'the train form': 'build it with deploy=False, and fuse it once it is loaded',
    'the deploy form with shortcuts': 'build it with deploy=True',
    'the deploy form without shortcuts': 'build it with deploy=True and keep_shortcut=False',
}


def _form(keys: Iterable[str]) -> str:
    names = list(keys)
    if not any(re.search(r'(^|\.)downsample_layers\.', name) for name in names):
        return ''  # not a RepNeXtU: the missing keys tell
    if any('.dwconv1.' in name for name in names):
        return 'the train form'
    shortcuts = not any('.block.' in name for name in names)
    return f'the deploy form {"with" if shortcuts else "without"} shortcuts'
