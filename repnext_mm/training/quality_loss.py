"""A loss of dense detectors that learns classes as fast as boxes, for short trainings from scratch."""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from repnext_mm.errors import UserError


@MODELS.register_module()
class QualityFocalCrossEntropyLoss(nn.Module):
    """MMDetection's ``QualityFocalLoss`` plus, at positives, the cross-entropy of a softmax over the classes.

    The focal loss (Li et al. 2020, arXiv 2006.04388, equation 2) looks at each class by itself, and most of its
    gradient is about object or background: a network from scratch finds objects long before it tells them apart. The
    second term compares the classes of an object with one another. Scores stay sigmoids, so that nothing changes in
    testing.

    Args:
        class_weight: weight of the second term beside the first, positive.
        loss_weight: of both.
        **focal: the other arguments of ``QualityFocalLoss``.

    Raises:
        UserError: the weight is not positive.
    """

    def __init__(self, class_weight: float = 1.0, loss_weight: float = 1.0, **focal: Any) -> None:
        super().__init__()
        if not class_weight > 0:
            raise UserError(f'class_weight={class_weight}: it must be positive; without it, use QualityFocalLoss')
        self.class_weight, self.loss_weight = class_weight, loss_weight
        self.focal = MODELS.build({'type': 'mmdet.QualityFocalLoss', 'loss_weight': loss_weight, **focal})

    def forward(
        self,
        pred: Tensor,
        target: tuple[Tensor, Tensor],
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """The loss, reduced as MMDetection's losses are.

        Args:
            pred: ``(N, classes)``, logits.
            target: labels ``(N,)``, of which those outside of ``[0, classes)`` are background, and qualities ``(N,)``.
            weight: ``(N,)``, of each prediction.
            avg_factor: what ``'mean'`` divides the sum by; by default N.
            reduction_override: ``'none'``, ``'mean'`` or ``'sum'``, instead of the one given at first.
        """
        from mmdet.models.losses.utils import weight_reduce_loss

        labels = target[0].long()
        background = (labels < 0) | (labels >= pred.shape[1])
        told_apart = F.cross_entropy(pred, labels.masked_fill(background, -100), reduction='none')
        reduced = weight_reduce_loss(told_apart, weight, reduction_override or self.focal.reduction, avg_factor)
        focal = self.focal(pred, target, weight, avg_factor, reduction_override)
        return focal + self.loss_weight * self.class_weight * reduced
