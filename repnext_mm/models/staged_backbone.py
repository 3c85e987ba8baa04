"""What a backbone of four stages owes to OpenMMLab: checked input, chosen outputs, frozen parts, strict loading."""

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repnext_mm.checkpoints import LoadReport
from repnext_mm.models.layers import called_one_by_one
from repnext_mm.models.type_name import type_name
from repnext_mm.reparam import FusionReport

if TYPE_CHECKING:
    Levels = tuple[Tensor, ...]
else:
    Levels = list[Tensor]  # what a script returns: TorchScript knows no tuple of any length

MIN_SIZE = 32  # pixels: the stride of the last stage


class StagedBackbone(BaseModule):
    """A stem and four stages. A subclass checks its options here, builds, and then calls ``_freeze``.

    Args:
        in_channels: channels of the image.
        out_indices: the stages to return, in ascending order.
        frozen_stages: ``-1`` freezes nothing, ``0`` the stem, ``k`` the stem and the first ``k`` stages.
        norm_eval: keep batch norms (SyncBN included) in eval mode while training.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE, prefix=None, ema=False, trust_pickle=False)`` loads a file
            strictly; other entries are mmengine's.
        pretrained: not supported.

    Raises:
        ValueError: an option is out of range.
    """

    __jit_unused_properties__ = ('is_init', 'out_channels')

    if TYPE_CHECKING:  # TorchScript reads annotations
        init_cfg: dict | list[dict] | None

    def __init__(
        self,
        *,
        in_channels: int,
        out_indices: Sequence[int],
        frozen_stages: int,
        norm_eval: bool,
        init_cfg: dict | list[dict] | None,
        pretrained: None,
    ) -> None:
        super().__init__(init_cfg)
        if pretrained is not None:
            raise ValueError(
                f'{type(self).__name__} takes no pretrained={pretrained!r}: set pretrained=None in the model and '
                "init_cfg=dict(type='Pretrained', checkpoint=...) in the backbone"
            )
        if type(in_channels) is not int or in_channels < 1:
            raise ValueError(f'in_channels {in_channels!r} must be the number of channels of the image, at least 1')
        if not isinstance(norm_eval, bool):
            raise ValueError(f'norm_eval {norm_eval!r} must be True or False')
        if frozen_stages not in range(-1, 5):
            raise ValueError(f'frozen_stages {frozen_stages} must be -1 (none), 0 (stem) or 1 to 4 (stem and stages)')
        self.in_channels = in_channels
        self.out_indices = _checked_out_indices(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval

    @abstractmethod
    def parts(self) -> list[list[nn.Module]]:
        """The stem, then each stage, as the modules that run one after the other."""

    @abstractmethod
    def load_pretrained(
        self,
        checkpoint: str,
        *,
        prefix: str | None = None,
        ema: bool = False,
        map_location: str = 'cpu',
        trust_pickle: bool = False,
    ) -> LoadReport:
        """Load the backbone's part of a file strictly; see ``repnext_mm.checkpoints.read_checkpoint``."""

    @abstractmethod
    def levels(self, x: Tensor) -> list[Tensor]:
        """The outputs of the four stages."""

    def forward(self, x: Tensor) -> Levels:
        """Features of the chosen stages, strides 4, 8, 16 and 32.

        Args:
            x: ``(N, in_channels, H, W)``, H and W at least 32, of any parity.

        Returns:
            ``(N, channels of the stage, H / stride, W / stride)`` for each of ``out_indices``; a script by
            ``torch.jit.script`` returns a list.

        Raises:
            ValueError: the input has another number of dimensions or channels, or is too small.
        """
        if not torch.jit.is_scripting():
            self._check_input(x)
        every, chosen = self.levels(x), []
        for index in self.out_indices:
            chosen.append(every[index])
        if not torch.jit.is_scripting():
            return tuple(chosen)
        return chosen  # type: ignore[return-value]

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says; pre-trained files load strictly and safely, unlike mmengine's default."""
        entries = [self.init_cfg] if isinstance(self.init_cfg, dict) else list(self.init_cfg or [])
        pretrained = [cfg for cfg in entries if type_name(cfg.get('type')) == 'Pretrained']
        declared, self.init_cfg = self.init_cfg, [cfg for cfg in entries if cfg not in pretrained] or None
        try:
            super().init_weights()
        finally:
            self.init_cfg = declared
        for cfg in pretrained:
            report = self.load_pretrained(**{key: value for key, value in cfg.items() if key != 'type'})
            print_log(f'{type(self).__name__}: {report} from {cfg["checkpoint"]}', logger='current')

    def train(self, mode: bool = True) -> 'StagedBackbone':
        """Set the mode; frozen stages, and all batch norms with ``norm_eval``, stay in eval mode."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _warn_of_refused(self, report: FusionReport) -> None:
        if report.refused:
            named = '; '.join(report.refused[:3])
            print_log(
                f'{type(self).__name__}: {len(report.refused)} parts stay as they are: {named}',
                logger='current',
                level=logging.WARNING,
            )

    def _freeze(self) -> None:
        for modules in self.parts()[: self.frozen_stages + 1]:
            for module in modules:
                module.eval().requires_grad_(False)

    def _check_input(self, x: Tensor) -> None:
        if called_one_by_one(x):  # sizes are not numbers while a graph is recorded
            return
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'input of shape {tuple(x.shape)}: {type(self).__name__} takes (N, {self.in_channels}, H, W), '
                'set in_channels for images with other channels'
            )
        if min(x.shape[2:]) < MIN_SIZE:
            raise ValueError(
                f'input of {x.shape[2]}x{x.shape[3]} pixels: {type(self).__name__} needs at least '
                f'{MIN_SIZE}x{MIN_SIZE}, resize or pad the image'
            )


# torch.fx writes annotations into its graphs, which return a tuple
del StagedBackbone.forward.__annotations__['return']


def _checked_out_indices(indices: Sequence[int]) -> tuple[int, ...]:
    chosen = tuple(indices) if isinstance(indices, Sequence) else (indices,)
    if not chosen or any(i not in range(4) for i in chosen) or list(chosen) != sorted(set(chosen)):
        raise ValueError(f'out_indices {indices} must be ascending, different stages from 0 to 3')
    return chosen
