"""The authors' ImageNet classifier by arch alone: no config, no mm package, no timm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from repnext_mm.checkpoints import LoadReport, load_strictly, read_checkpoint, state_dict_of
from repnext_mm.models.heads import TwoHeadLinear
from repnext_mm.models.repnext import RepNeXt


class Classifier(nn.Module):
    """A backbone, the mean over the image, and two heads, under the authors' keys.

    Args:
        arch: a name of ``ARCHITECTURES``, or a dict, see ``RepNeXt``.
        num_classes: outputs.
    """

    def __init__(self, arch: str | Mapping[str, Any], *, num_classes: int = 1000) -> None:
        super().__init__()
        backbone = RepNeXt(arch, out_indices=(3,))
        self.stem, self.stages = backbone.stem, nn.Sequential(*backbone.stages)
        self.head = TwoHeadLinear(backbone.out_channels[0], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, H, W) -> (N, classes)``: scores before the softmax."""
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def load_classifier(
    arch: str | Mapping[str, Any], checkpoint: str, *, trust_pickle: bool = False
) -> tuple[Classifier, LoadReport]:
    """A classifier with the weights of a file: the authors', timm's, or that of MMPretrain's ``ImageClassifier``.

    Raises:
        FileNotFoundError, WeightsError: the file cannot be read, or is not a classifier in train form of this arch.
    """
    state = state_dict_of(read_checkpoint(checkpoint, trust_pickle=trust_pickle))
    state = {key.removeprefix('backbone.'): value for key, value in state.items()}
    head = state.get('head.head.linear.weight')
    model = Classifier(arch, num_classes=1000 if head is None else len(head))
    return model, load_strictly(model, state, source=checkpoint)
