"""RepNeXt's classification head for MMPretrain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from repnext_mm.models.heads import NormLinear, TwoHeads


@MODELS.register_module(name='RepNeXtClsHead')
def build_cls_head(
    *,
    num_classes: int,
    in_channels: int,
    loss: dict[str, Any] | None = None,
    topk: int | Sequence[int] = (1,),
    cal_acc: bool = False,
    deploy: bool = False,
    init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
) -> nn.Module:
    """Two norm+linear heads under the authors' keys, of which the mean counts; a function, to import MMPretrain late.

    Its deploy form is MMPretrain's ``LinearClsHead``: no norm, one layer.

    Args:
        num_classes: of the data set.
        in_channels: of the pooled features, ``(N, in_channels)``.
        loss: of the scores' mean; in a ``DistilledClassifier``, of the first head.
        topk: see MMPretrain's ``ClsHead``.
        cal_acc: see MMPretrain's ``ClsHead``.
        deploy: build the deploy form, for inference with a fused checkpoint.
        init_cfg: see mmengine's ``BaseModule``; by default weights start as the authors' do.

    Raises:
        ImportError: MMPretrain is not installed.
        ValueError: ``num_classes`` or ``in_channels`` is not positive.
    """
    if num_classes < 1 or in_channels < 1:
        raise ValueError(f'num_classes={num_classes} and in_channels={in_channels} must be positive')
    options = {
        'loss': {'type': 'CrossEntropyLoss'} if loss is None else loss,
        'topk': topk,
        'cal_acc': cal_acc,
        'init_cfg': init_cfg,
    }
    if deploy:
        return _mmpretrain_heads().LinearClsHead(num_classes, in_channels, **options)
    return _head_class()(num_classes, in_channels, **options)


@cache
def _head_class() -> Callable[..., nn.Module]:
    heads = _mmpretrain_heads()
    base: Any = heads.ClsHead

    class RepNeXtClsHead(TwoHeads, base):
        """See ``build_cls_head``."""

        def __init__(self, num_classes: int, in_channels: int, **options: Any) -> None:
            super().__init__(**options)
            self.num_classes = num_classes
            self.in_channels = in_channels
            self.head = NormLinear(in_channels, num_classes)
            self.head_dist = NormLinear(in_channels, num_classes)

        def forward(self, feats: Sequence[Tensor]) -> Tensor:
            """``(..., (N, C)) -> (N, classes)``: scores before the softmax."""
            return self.mean(feats[-1])

        def fused(self, form: str) -> nn.Module:
            linear = self.merged()
            if linear is None:
                return self
            head = heads.LinearClsHead(
                self.num_classes, self.in_channels, loss=self.loss_module, topk=self.topk, cal_acc=self.cal_acc
            )
            head.fc = linear
            return head.train(self.training)

    return RepNeXtClsHead


def _mmpretrain_heads() -> Any:
    try:
        from mmpretrain.models import heads
    except ImportError as error:
        raise ImportError(
            f'RepNeXtClsHead builds on MMPretrain, which cannot be imported ({error}): install onedl-mmpretrain or '
            'mmpretrain'
        ) from error
    return heads
