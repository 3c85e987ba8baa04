"""The RepNeXt backbone (arXiv 2406.16004), registered once for every OpenMMLab project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repnext_mm.nn import ChunkConv, CopyConv, Downsample, MetaNeXtBlock, Stage, Stem, depthwise
from repnext_mm.reparam import fuse
from .arch import Arch, resolve_arch
from .pretrained import load_pretrained

MIN_SIZE = 32  # pixels: the stride of the last stage


@MODELS.register_module()
class RepNeXt(BaseModule):
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
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE, prefix=None, trust_pickle=False)`` loads a file strictly,
            heads and necks left out; other entries are mmengine's.
        pretrained: not supported; present because stock mmseg configs set it.

    Raises:
        ValueError: an argument makes no RepNeXt.
    """

    stem: nn.Module
    stages: nn.ModuleList
    init_cfg: dict | list[dict] | None

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
        super().__init__(init_cfg)
        if pretrained is not None:
            raise ValueError(
                f"RepNeXt takes no pretrained={pretrained!r}: set pretrained=None in the model and "
                "init_cfg=dict(type='Pretrained', checkpoint=...) in the backbone"
            )
        self.arch = resolve_arch(arch)
        self.in_channels = in_channels
        self.out_indices = _checked_out_indices(out_indices)
        if frozen_stages not in range(-1, 5):
            raise ValueError(f'frozen_stages {frozen_stages} must be -1 (none), 0 (stem) or 1 to 4 (stem and stages)')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate {drop_path_rate} must be in [0, 1)')
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
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

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features of the chosen stages, strides 4, 8, 16 and 32.

        Args:
            x: ``(N, in_channels, H, W)``, H and W at least 32, of any parity.

        Returns:
            ``(N, embed_dims[i], ceil(H / stride), ceil(W / stride))`` for each ``i`` in ``out_indices``.

        Raises:
            ValueError: the input has another number of dimensions or channels, or is too small.
        """
        if not torch.jit.is_tracing():
            self._check_input(x)
        x = self.stem(x)
        outputs = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.out_indices:
                outputs.append(x)
        return tuple(outputs)

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says; pre-trained files load strictly and safely, unlike mmengine's default."""
        entries = [self.init_cfg] if isinstance(self.init_cfg, dict) else list(self.init_cfg or [])
        pretrained = [cfg for cfg in entries if cfg.get('type') == 'Pretrained']
        declared, self.init_cfg = self.init_cfg, [cfg for cfg in entries if cfg.get('type') != 'Pretrained'] or None
        try:
            super().init_weights()
        finally:
            self.init_cfg = declared
        for cfg in pretrained:
            report = load_pretrained(self, **{key: value for key, value in cfg.items() if key != 'type'})
            print_log(f'{type(self).__name__}: {report} from {cfg["checkpoint"]}', logger='current')

    def train(self, mode: bool = True) -> RepNeXt:
        """Set the mode; frozen stages, and all batch norms with ``norm_eval``, stay in eval mode."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def switch_to_deploy(self) -> RepNeXt:
        """Fuse in place, with the running statistics whatever the mode; returns ``self``.

        This is the name that mmdeploy, MMPretrain's converter and timm call. ``reparam.fuse`` keeps the train form.
        """
        training = self.training
        fused, _ = fuse(self.eval())
        self.stem, self.stages = cast(nn.Module, fused.stem), cast(nn.ModuleList, fused.stages)
        self.deploy = True
        return self.train(training)

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

    def _freeze(self) -> None:
        for module in (self.stem, *self.stages)[: self.frozen_stages + 1]:
            module.eval().requires_grad_(False)

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'input of shape {tuple(x.shape)}: RepNeXt takes (N, {self.in_channels}, H, W), '
                'set in_channels for images with other channels'
            )
        if min(x.shape[2:]) < MIN_SIZE:
            raise ValueError(
                f'input of {x.shape[2]}x{x.shape[3]} pixels: RepNeXt needs at least {MIN_SIZE}x{MIN_SIZE}, '
                'resize or pad the image'
            )


def _checked_out_indices(indices: Sequence[int]) -> tuple[int, ...]:
    chosen = tuple(indices) if isinstance(indices, Sequence) else (indices,)
    if not chosen or any(i not in range(4) for i in chosen) or list(chosen) != sorted(set(chosen)):
        raise ValueError(f'out_indices {indices} must be ascending, different stages from 0 to 3')
    return chosen
