"""The networks that RepNeXt is compared with, as timm builds them, fused as far as they go."""

from __future__ import annotations

import copy
import importlib.util
import warnings

from torch import Tensor, nn
from torch.fx.experimental import optimization

PEERS = (
    'repvit_m0_9',
    'repvit_m1_0',
    'repvit_m1_1',
    'repvit_m1_5',
    'repvit_m2_3',
    'mobileone_s1',
    'mobileone_s2',
    'mobileone_s3',
    'mobileone_s4',
    'fastvit_t8',
    'fastvit_t12',
    'fastvit_sa12',
    'fastvit_sa24',
    'starnet_s1',
    'starnet_s2',
    'starnet_s3',
    'starnet_s4',
    'resnet50',
)
"""Names in timm. By reported top-1, RepViT M0.9, M1.0, M1.1, M1.5, M2.3 stand beside RepNeXt M1, M2, M3, M4, M5."""


class Trunk(nn.Module):
    """A classifier up to its last feature map: what a RepNeXt backbone computes, without pooling and head.

    This is timm's ``forward_features``; FastViT's includes a last convolution that its classifier alone needs.
    ``whole`` goes on to the scores.
    """

    def __init__(self, classifier: nn.Module, *, whole: bool = False) -> None:
        super().__init__()
        self.classifier = classifier
        self.whole = whole

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """``(N, 3, H, W)`` to the last feature map, or the scores, as a tuple of one level."""
        return (self.classifier(x) if self.whole else self.classifier.forward_features(x),)  # type: ignore[operator]


def build_peer(name: str, *, whole: bool = False) -> Trunk:
    """A peer's trunk, or the whole classifier of 1000 classes, in train form and eval mode, with random weights.

    Raises:
        ValueError: an unknown name.
        ModuleNotFoundError: timm is not installed.
    """
    if name not in PEERS:
        raise ValueError(f'unknown peer {name!r}: choose from {", ".join(PEERS)}')
    if not has_timm():
        raise ModuleNotFoundError('timm is not installed, and builds the peers: pip install timm', name='timm')
    import timm

    return Trunk(timm.create_model(name, pretrained=False, num_classes=1000 if whole else 0), whole=whole).eval()


def fuse_peer(trunk: Trunk) -> nn.Module:
    """Merge a peer's branches as timm does, then fold every norm that directly follows a convolution.

    timm has no fusing for some peers (ResNet, StarNet); folding their norms all the same is only fair.
    """
    from timm.utils.model import reparameterize_model

    merged = copy.deepcopy(trunk)
    merged.classifier = reparameterize_model(merged.classifier, inplace=True)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch.fx deprecates parts that it uses itself
        return optimization.fuse(merged)


def has_timm() -> bool:
    """Whether timm can be imported."""
    return importlib.util.find_spec('timm') is not None
