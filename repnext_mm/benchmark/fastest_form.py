"""Which deploy form runs fastest, measured stage by stage on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repnext_mm.benchmark.latency import Latency, measure_latency
from repnext_mm.reparam import FORMS, fuse

CANDIDATES = tuple(form for form in FORMS if form != 'keep_norms')


def fastest_form(
    backbone: nn.Module, image: Tensor, *, forms: Sequence[str] = CANDIDATES, rounds: int = 20
) -> dict[str, str]:
    """The fastest form of each stage, for ``reparam.fuse(form=...)``; where forms tie to 2 %, the first is kept.

    Which form wins depends on the shape, the device, the memory format and the number of threads: those of ``image``
    and of this process count.

    Args:
        backbone: in eval mode, with ``stages``; a model without is measured as a whole.
        image: ``(N, 3, H, W)``, on the backbone's device.
        forms: the candidates.
        rounds: measurements of each form; their medians are compared.

    Returns:
        Names of modules and their forms; one that is the first of ``forms`` everywhere is given as ``{'': form}``.
    """
    chosen = {}
    for name, latencies in stage_latencies(backbone, image, forms=forms, rounds=rounds).items():
        best = min(latencies, key=lambda form: latencies[form].median_ms)
        ties = latencies[best].median_ms > 0.98 * latencies[forms[0]].median_ms
        chosen[name] = forms[0] if ties else best
    return {'': forms[0]} if set(chosen.values()) == {forms[0]} else chosen


@torch.inference_mode()
def stage_latencies(
    backbone: nn.Module, image: Tensor, *, forms: Sequence[str] = CANDIDATES, rounds: int = 20
) -> dict[str, dict[str, Latency]]:
    """Latency of each stage in each form, on what that stage gets when the backbone sees ``image``."""
    names = [name for name, _ in backbone.named_children() if name == 'stages']
    parts = {f'stages.{i}': stage for i, stage in enumerate(backbone.stages)} if names else {'': backbone}  # type: ignore[arg-type]
    inputs: dict[str, tuple[Any, ...]] = {}
    handles = [
        part.register_forward_pre_hook(lambda _, given, name=name: inputs.__setitem__(name, given))
        for name, part in parts.items()
    ]
    try:
        backbone(image)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: measure_latency(
            {form: partial(fuse(part, form=form)[0], *inputs[name]) for form in forms},
            rounds=rounds,
            warmup_s=0.3,
            device=image.device,
        )
        for name, part in parts.items()
    }
