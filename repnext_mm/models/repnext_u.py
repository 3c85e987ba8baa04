"""The RepNeXtU backbone: ConvNeXt's layout with re-parameterized units and activated shortcuts, no layer norm."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from repnext_mm.checkpoints import LoadReport, WeightsError, fit, read_checkpoint, state_dict_of
from repnext_mm.models.rep_unit import REP_UNITS
from repnext_mm.models.staged_backbone import StagedBackbone
from repnext_mm.models.unit_block import PatchMerging, PatchStem, UnitBlock, UnitStage
from repnext_mm.reparam import fuse


@dataclass(frozen=True)
class UnitArch:
    """Widths and depths of the four stages."""

    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]

    def __post_init__(self) -> None:
        if len(self.dims) != 4 or len(self.depths) != 4 or min(*self.dims, *self.depths) < 1:
            raise ValueError(f'dims {self.dims} and depths {self.depths} must have one positive entry per stage: 4')


UNIT_ARCHITECTURES: dict[str, UnitArch] = {
    'tiny': UnitArch((96, 192, 384, 768), (3, 3, 9, 3)),
    'small': UnitArch((96, 192, 384, 768), (3, 3, 27, 3)),
    'base': UnitArch((128, 256, 512, 1024), (3, 3, 27, 3)),
}


@MODELS.register_module()
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
        keep_shortcut: of the deploy form that ``deploy`` and ``switch_to_deploy`` make. Without shortcuts a block is a
            plain chain of layers, with almost twice the weights. ``reparam.fuse(model, form='no_shortcut')`` too.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE, prefix=None, ema=False, trust_pickle=False)`` loads a file
            strictly, heads and necks left out; other entries are mmengine's.
        pretrained: not supported; present because stock mmseg configs set it.

    Raises:
        ValueError: an argument makes no RepNeXtU.
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
            norm_eval=norm_eval,
            init_cfg=init_cfg,
            pretrained=pretrained,
        )
        if unit not in REP_UNITS:
            raise ValueError(f'unknown unit {unit!r}: choose one of {", ".join(REP_UNITS)}')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate {drop_path_rate} must be in [0, 1)')
        self.arch = _resolved(arch)
        self.unit = unit
        self.keep_shortcut = keep_shortcut
        self.deploy = False
        if deploy:
            with torch.device('meta'):  # the deploy form is what fusing makes of the train form: build it that way
                self._build(drop_path_rate, with_cp)
            self.switch_to_deploy()
            self.to_empty(device=torch.empty(0).device)
        else:
            self._build(drop_path_rate, with_cp)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self._freeze()

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the returned levels: what a neck's ``in_channels`` must be."""
        return tuple(self.arch.dims[i] for i in self.out_indices)

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

    def switch_to_deploy(self) -> RepNeXtU:
        """Fuse in place, with the running statistics whatever the mode; returns ``self``.

        This is the name that mmdeploy, MMPretrain's converter and timm call. ``reparam.fuse`` keeps the train form.
        """
        training = self.training
        fused, report = fuse(self.eval(), form='default' if self.keep_shortcut else 'no_shortcut')
        self.downsample_layers = cast(nn.ModuleList, fused.downsample_layers)
        self.stages = cast(nn.ModuleList, fused.stages)
        self.deploy = True
        self._warn_of_refused(report)
        self.train(training)
        return self

    def load_pretrained(
        self,
        checkpoint: str,
        *,
        prefix: str | None = None,
        ema: bool = False,
        map_location: str = 'cpu',
        trust_pickle: bool = False,
    ) -> LoadReport:
        """Load the backbone's part of a file strictly; ``map_location`` is mmengine's and does not matter here.

        Raises:
            FileNotFoundError, ValueError: the file cannot be read or does not fit; the backbone is then unchanged.
        """
        content = read_checkpoint(checkpoint, trust_pickle=trust_pickle)
        own = self.state_dict()
        try:
            state, report = fit(
                content,
                own,
                name=type(self).__name__,
                source=checkpoint,
                prefix=prefix,
                ema=ema,
                part=True,
                unused=['conv_repara'],  # the authors' train form has a dead 7x7
            )
        except WeightsError as error:
            found, wanted = _form(state_dict_of(content, prefix=prefix, ema=ema)), _form(own)
            if found and found != wanted:
                raise WeightsError(f'{checkpoint} holds {found}, this backbone is {wanted}: {_HOW[found]}') from error
            raise
        self.load_state_dict(state, strict=True)
        return report

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay, after ConvNeXt's grouping.

        The stem is layer 0, the first two stages are a layer each, the third stage is a layer per three blocks, the
        fourth one more. What does not start with ``prefix`` (a neck, a head) comes last.

        Returns:
            The layer and the number of layers.
        """
        groups = -(-self.arch.depths[2] // 3)
        last = groups + 3
        if not param_name.startswith(prefix):
            return last + 1, last + 2
        kind, index, *rest = param_name.removeprefix(prefix).split('.')
        stage = int(index)
        if kind == 'downsample_layers' and stage == 0:
            return 0, last + 2
        if stage != 2:
            return (stage + 1 if stage < 2 else last), last + 2
        block = int(rest[0]) if kind == 'stages' else 0
        return 3 + block // 3, last + 2

    def _build(self, drop_path_rate: float, with_cp: bool) -> None:
        dims, depths = self.arch.dims, self.arch.depths
        rates = torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist()
        merging = (PatchMerging(before, after) for before, after in pairwise(dims))
        self.downsample_layers = nn.ModuleList([PatchStem(self.in_channels, dims[0]), *merging])
        self.stages = nn.ModuleList(
            UnitStage(
                *(UnitBlock(width, REP_UNITS[self.unit](width), drop_path=rates.pop(0)) for _ in range(depth)),
                with_cp=with_cp,
            )
            for width, depth in zip(dims, depths, strict=True)
        )


def _resolved(arch: str | Mapping[str, Any] | UnitArch) -> UnitArch:
    if isinstance(arch, UnitArch):
        return arch
    if isinstance(arch, str):
        if arch not in UNIT_ARCHITECTURES:
            raise ValueError(f'unknown arch {arch!r}: choose one of {", ".join(UNIT_ARCHITECTURES)}, or give a dict')
        return UNIT_ARCHITECTURES[arch]
    if not isinstance(arch, Mapping):
        raise ValueError(f'arch must be a name or a dict, not {type(arch).__name__}')
    if set(arch) != {'dims', 'depths'}:
        raise ValueError(f'arch dict with fields {sorted(arch)}: dims and depths are needed, and nothing else is known')
    return UnitArch(tuple(arch['dims']), tuple(arch['depths']))


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
