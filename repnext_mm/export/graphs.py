"""Networks as they are exported: an image in, tensors out, no size frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repnext_mm.reparam.surgery import replaced


class Normalisation(NamedTuple):
    """How the pixels 0 to 255 of a picture become a network's input."""

    mean: Sequence[float]
    std: Sequence[float]
    rgb: bool  # the network takes RGB; else BGR


IMAGENET = Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), rgb=True)


class Normalised(nn.Module):
    """A network behind its normalisation: takes RGB pixels from 0 to 255."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.network = network
        self.bgr = not normalisation.rgb
        self.register_buffer('mean', torch.tensor(normalisation.mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(normalisation.std).reshape(1, -1, 1, 1), persistent=False)
        self.train(network.training)

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, ...]:
        """``(N, 3, H, W)`` to whatever the network returns."""
        image = pixels.flip(1) if self.bgr else pixels
        return self.network((image - self.mean) / self.std)


class SegmentorLogits(nn.Module):
    """An mmseg ``EncoderDecoder`` up to its logits, at the size of the image, as its ``whole`` mode computes them."""

    def __init__(self, segmentor: nn.Module) -> None:
        super().__init__()
        self.segmentor = segmentor
        self.align_corners = bool(cast(nn.Module, segmentor.decode_head).align_corners)
        self.train(segmentor.training)

    def forward(self, image: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, classes, H, W)``."""
        logits = self.segmentor(image)  # mode='tensor'
        return F.interpolate(logits, size=image.shape[2:], mode='bilinear', align_corners=self.align_corners)


def without_frozen_sizes(segmentor: nn.Module) -> nn.Module:
    """The same segmentor with torch's upsampling for mmseg's, which computes its size in Python integers.

    A tracer would write the size of its example into the graph; the two agree bit by bit for whole factors.
    """
    from mmseg.models.utils import Upsample

    def upsample(_: str, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, Upsample) or module.size:
            return None
        return nn.Upsample(scale_factor=module.scale_factor, mode=module.mode, align_corners=module.align_corners)

    return replaced(segmentor, upsample)
