"""Whether an exported network computes what the network it came from does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repnext_mm.export.graphs import Normalised
from repnext_mm.export.runtimes import Run
from repnext_mm.reparam.verify import relative_error, worst


def probes(model: nn.Module, shape: Sequence[int], *, dynamic: bool, batch: bool = True) -> list[Tensor]:
    """Random inputs of a shape and, where sizes are dynamic, of another (odd) size and another batch.

    ``batch=False`` keeps the batch. A ``Normalised`` model gets pixels.
    """
    shapes = [tuple(shape)]
    if dynamic:
        n, channels, height, width = shape
        shapes.append((n + batch, channels, _other(height, 3), _other(width, 5)))
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, Normalised):
        return [torch.rand(shape, generator=generator) * 255 for shape in shapes]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def parity(run: Run, reference: nn.Module, inputs: Sequence[Tensor]) -> tuple[float, ...]:
    """The relative error of each output, the worst over the inputs; NaN where any is.

    Raises:
        ValueError: the outputs differ in number or shape.
    """
    errors = [relative_error(_Exported(run), reference, image) for image in inputs]
    return tuple(worst(each) for each in zip(*errors, strict=True))


class _Exported(nn.Module):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.run(image)


def _other(size: int, eighths: int) -> int:
    """Another size, odd: smaller, for time, but with room for a stride of 32."""
    smaller = size * eighths // 8 | 1
    return smaller if smaller > 32 else size + 14 | 1
