"""How far a fused model is from its definition, per output level, in float64 and float32."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repnext_mm.models.branchwise import branch_by_branch
from repnext_mm.reparam import FusionReport, fuse, relative_error
from repnext_mm.reparam.fusible import Form
from repnext_mm.reparam.verify import all_within, outputs_of, randomize

TOLERANCE_FLOAT64 = 1e-10
TOLERANCE_FLOAT32 = 1e-4


@dataclass(frozen=True, kw_only=True)
class LevelError:
    """The error of one output level, fused against definition."""

    shape: tuple[int, ...]
    relative: float  # largest difference over largest value; NaN where either has one
    absolute: float  # largest difference


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """What ``check_consistency`` found."""

    report: FusionReport
    levels: Mapping[str, tuple[LevelError, ...]]  # of 'float64' and 'float32'
    tolerances: Mapping[str, float]  # relative

    @property
    def failures(self) -> tuple[str, ...]:
        """Why this is not a proof; empty when it is one."""
        if not self.report:
            return ('nothing was fused: the model is not re-parameterizable, or fused already',)
        return tuple(
            f'{dtype}: relative error {", ".join(f"{level.relative:.1e}" for level in levels)}, '
            f'{self.tolerances[dtype]:.0e} is the limit'
            for dtype, levels in self.levels.items()
            if not all_within([level.relative for level in levels], self.tolerances[dtype])
        )


def check_consistency(
    model: nn.Module,
    *,
    form: Form = 'default',
    shape: Sequence[int] = (1, 3, 224, 224),
    device: torch.device | str = 'cpu',
    tolerance_float64: float = TOLERANCE_FLOAT64,
    tolerance_float32: float = TOLERANCE_FLOAT32,
    seed: int = 0,
) -> Consistency:
    """Fuse a model twice, in float64 and in float32, and compare with its definition on a random image.

    Args:
        model: in eval mode; never changed. Give it weights that hide nothing (``with_random_statistics``).
        form: of ``fuse``.
        shape: of the image, ``(N, C, H, W)``.
        device: where to compute.
        tolerance_float64: the largest relative error that counts as rounding; 1e-10 leaves four digits for the
            rounding of a hundred layers.
        tolerance_float32: the same in float32, without TF32.
        seed: of the image.

    Raises:
        ValueError: the form does not fit, or fused outputs have other shapes.
    """
    tolerances = {'float64': tolerance_float64, 'float32': tolerance_float32}
    levels, report = {}, None
    image = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for name in tolerances:
        dtype = getattr(torch, name)
        source, probe = copy.deepcopy(model).to(device, dtype), image.to(device, dtype)
        fused, found = fuse(source, form=form, probe=probe)
        report = report or found  # the counts agree
        levels[name] = _levels(fused, branch_by_branch(source), probe) if found else ()
    assert report is not None
    return Consistency(report=report, levels=levels, tolerances=tolerances)


def with_random_statistics(model: nn.Module, *, shape: Sequence[int] = (1, 3, 224, 224), seed: int = 0) -> nn.Module:
    """Give a model, in place, norm statistics, biases and scales that no fusing mistake survives; fresh ones hide all.

    They are fitted to images of ``shape``, so that activations stay in range.
    """
    return randomize(model, seed=seed, image=torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def _levels(fused: nn.Module, reference: nn.Module, image: Tensor) -> tuple[LevelError, ...]:
    errors = relative_error(fused, reference, image)
    with torch.no_grad():
        outputs = outputs_of(reference(image))
    scales = [output.double().abs().max().item() for output in outputs]
    return tuple(
        LevelError(shape=tuple(output.shape), relative=error, absolute=error * scale if scale else error)
        for error, output, scale in zip(errors, outputs, scales, strict=True)
    )
