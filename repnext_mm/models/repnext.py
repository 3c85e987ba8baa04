"""The RepNeXt backbone (arXiv 2406.16004), registered once for every OpenMMLab project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from repnext_mm.checkpoints import LoadReport
from repnext_mm.models.arch import Arch, resolve_arch
from repnext_mm.models.block import Downsample, MetaNeXtBlock
from repnext_mm.models.layers import depthwise
from repnext_mm.models.pretrained import load_pretrained
from repnext_mm.models.stage import Stage, Stem
from repnext_mm.models.staged_backbone import StagedBackbone
from repnext_mm.models.token_mixer import ChunkConv, CopyConv
from repnext_mm.reparam import fuse


@MODELS.register_module()
class RepNeXt(StagedBackbone):
    """RepNeXt, a multi-scale CNN with structural re-parameterization.

    In train form, the branches of each token mixer are merged into one kernel on the fly, so that training costs
    little more than the fused network does; ``repnext_mm.reparam.fuse`` returns the deploy form.

    Args:
        arch: ``'m0'`` to ``'m5'``, ``'m0e'`` to ``'m2e'``, or a dict with ``embed_dims``, ``depths``, ``mlp_ratio``
            and ``token_mixer`` (``'multi'`` or ``'single'``).
        in_channels: channels of the image.
        out_indices: the stages to return, in ascending order.
        frozen_stages: ``-1`` freezes nothing, ``0`` the stem, ``k`` the stem and the first ``k`` stages.
        drop_path_rate: stochastic depth rate of the last block; it grows linearly from 0.
        norm_cfg: norm layers. BN and SyncBN fold; other norms are kept when fusing.
        act_cfg: activation layers.
        norm_eval: keep batch norms (SyncBN included) in eval mode while training. Their running statistics are then
            folded on the fly, which saves time and memory.
        with_cp: recompute activations in the backward pass to save memory.
        deploy: build the deploy form, for inference with a fused checkpoint.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE, prefix=None, ema=False, trust_pickle=False)`` loads a file
            strictly, heads and necks left out; other entries are mmengine's.
        pretrained: not supported; present because stock mmseg configs set it.

    Raises:
        ValueError: an argument makes no RepNeXt.
    """

    if TYPE_CHECKING:  # TorchScript reads annotations
        stem: nn.Module
        stages: nn.ModuleList

    def __init__(
        self,
        arch: str | Mapping[str, Any] | Arch = 'm4',
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        drop_path_rate: float = 0.0,
        norm_cfg: Mapping[str, Any] | None = None,
        act_cfg: Mapping[str, Any] | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        deploy: bool = False,
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
        for name, value in (('with_cp', with_cp), ('deploy', deploy)):
            if not isinstance(value, bool):
                raise ValueError(f'{name} {value!r} must be True or False')
        self.arch = resolve_arch(arch)
        if type(drop_path_rate) not in (int, float) or not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate {drop_path_rate!r} must be in [0, 1)')
        self.deploy = False
        norm_cfg = {'type': 'BN'} if norm_cfg is None else norm_cfg
        act_cfg = {'type': 'GELU'} if act_cfg is None else act_cfg

        if deploy:
            with torch.device('meta'):  # the deploy form is what fusing makes of the train form: build it that way
                self._build(norm_cfg, act_cfg, drop_path_rate, with_cp)
            self.switch_to_deploy()
            self.to_empty(device=torch.empty(0).device)
            for module in self.modules():
                if hasattr(module, 'reset_parameters'):
                    module.reset_parameters()
        else:
            self._build(norm_cfg, act_cfg, drop_path_rate, with_cp)
        self._freeze()

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the returned levels: what a neck's ``in_channels`` must be."""
        return tuple(self.arch.embed_dims[i] for i in self.out_indices)

    def parts(self) -> list[list[nn.Module]]:
        return [[self.stem], *([stage] for stage in self.stages)]

    def levels(self, x: Tensor) -> list[Tensor]:
        found = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def load_pretrained(
        self,
        checkpoint: str,
        *,
        prefix: str | None = None,
        ema: bool = False,
        map_location: str = 'cpu',
        trust_pickle: bool = False,
    ) -> LoadReport:
        """See ``repnext_mm.models.pretrained``."""
        return load_pretrained(
            self, checkpoint, prefix=prefix, ema=ema, map_location=map_location, trust_pickle=trust_pickle
        )

    def switch_to_deploy(self) -> RepNeXt:
        """Fuse in place, with the running statistics whatever the mode; returns ``self``.

        This is the name that mmdeploy, MMPretrain's converter and timm call. ``reparam.fuse`` keeps the train form.
        """
        training = self.training
        fused, report = fuse(self.eval())
        self.stem, self.stages = cast(nn.Module, fused.stem), cast(nn.ModuleList, fused.stages)
        self.deploy = True
        self._warn_of_refused(report)
        self.train(training)
        return self

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
        names = param_name.removeprefix(prefix).split('.')
        if names[0] != 'stages':
            return 0, last + 2
        stage = int(names[1])
        if stage != 2:
            return (stage + 1 if stage < 2 else last), last + 2
        block = int(names[3]) if names[2] == 'blocks' else 0
        return 3 + block // 3, last + 2

    def _build(
        self, norm_cfg: Mapping[str, Any], act_cfg: Mapping[str, Any], drop_path_rate: float, with_cp: bool
    ) -> None:
        arch = self.arch
        multi = arch.token_mixer == 'multi'
        common: dict[str, Any] = {'mlp_ratio': arch.mlp_ratio, 'norm_cfg': norm_cfg, 'act_cfg': act_cfg}
        rates = torch.linspace(0, drop_path_rate, sum(arch.depths), device='cpu').tolist()
        self.stem = Stem.train_form(self.in_channels, arch.embed_dims[0], norm_cfg=norm_cfg, act_cfg=act_cfg)
        stages = []
        for index, (channels, depth) in enumerate(zip(arch.embed_dims, arch.depths, strict=True)):
            downsample: nn.Module = nn.Identity()
            if index:
                half = channels // 2
                strided = CopyConv.train_form(half) if multi else depthwise(half, (7, 7), stride=(2, 2), expansion=2)
                downsample = Downsample(channels, strided, **common)
            blocks = []
            for _ in range(depth):
                mixer = ChunkConv.train_form(channels) if multi else depthwise(channels, (11, 11))
                blocks.append(MetaNeXtBlock(channels, mixer, drop_path=rates.pop(0), **common))
            stages.append(Stage(downsample, nn.Sequential(*blocks), with_cp=with_cp))
        self.stages = nn.ModuleList(stages)
