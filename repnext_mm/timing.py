"""Interleaved timing (A B C A B C ..., so that a slower machine slows all alike), and the form that wins by it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repnext_mm.errors import UserError
from repnext_mm.reparam.checked import random_image
from repnext_mm.reparam.fuse import fuse
from repnext_mm.reparam.fusible import Form, forms_of

Calls = Mapping[str, Callable[[], object]]
_log = logging.getLogger(__name__)

NOT_FOR_SPEED = ('keep_norms', 'balanced')
"""Forms that nobody chooses for their speed: one is there to be compared with, the other runs what ``default`` runs."""


@dataclass(frozen=True)
class Latency:
    """Quantiles of the measured time of one call, in milliseconds."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    n: int


def measure_latency(
    calls: Calls,
    *,
    rounds: int = 30,
    warmup_rounds: int = 3,
    warmup_s: float = 1.0,
    device: torch.device | str = 'cpu',
) -> dict[str, Latency]:
    """Time each call once per round, by the wall clock; gradients are off.

    The warm-up lasts until both ``warmup_rounds`` rounds and ``warmup_s`` seconds have passed.
    ``device`` is where the calls compute: CUDA runs ahead of Python and is waited for before each reading of the clock.

    Raises:
        ValueError: nothing to time, or a count that cannot be.
    """
    with torch.no_grad():
        warm_up(calls, rounds=warmup_rounds, seconds=warmup_s, device=device)
        times_ms = wall_times(calls, rounds=rounds, device=device)
    return {name: quantiles(values) for name, values in times_ms.items()}


def warm_up(calls: Calls, *, rounds: int, seconds: float, device: torch.device | str = 'cpu') -> int:
    """Call everything in turn until both ``rounds`` rounds and ``seconds`` have passed; returns the rounds made.

    Raises:
        ValueError: nothing to time, or a negative number.
    """
    if not calls:
        raise ValueError('nothing to time: give at least one named callable')
    if rounds < 0 or seconds < 0:
        raise UserError(f'a warm-up of {rounds} rounds and {seconds} s: give numbers that are not negative')
    device, made, start = torch.device(device), 0, time.perf_counter()
    while made < rounds or time.perf_counter() - start < seconds:
        for call in calls.values():
            _elapsed_ms(call, device)
        made += 1
    return made


def wall_times(
    calls: Calls, *, rounds: int, device: torch.device | str = 'cpu', after_round: Callable[[], object] | None = None
) -> dict[str, list[float]]:
    """Milliseconds of each call in each round, from the call to the end of its work, launches included.

    ``after_round`` is called between rounds, outside the measurement.

    Raises:
        ValueError: less than one round.
    """
    _check_rounds(rounds)
    device = torch.device(device)
    times_ms: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times_ms[name].append(_elapsed_ms(call, device))
        if after_round is not None:
            after_round()
    return times_ms


def event_times(calls: Calls, *, rounds: int) -> dict[str, list[float]]:
    """Milliseconds between two CUDA events around each call, with one wait at the very end.

    While the GPU lags behind Python this is the GPU's own time; where it does not, the call is bound by its launches.

    Raises:
        ValueError: less than one round.
    """
    _check_rounds(rounds)
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
    torch.cuda.synchronize()
    for _ in range(rounds):
        for name, call in calls.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    return {name: [start.elapsed_time(end) for start, end in pairs] for name, pairs in events.items()}


def quantiles(values_ms: Sequence[float]) -> Latency:
    """Median, first and last decile of measured times."""
    p10, median, p90 = torch.tensor(values_ms, dtype=torch.float64).quantile(
        torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    )
    return Latency(median_ms=median.item(), p10_ms=p10.item(), p90_ms=p90.item(), n=len(values_ms))


def _elapsed_ms(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return (time.perf_counter() - start) * 1e3


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _check_rounds(rounds: int) -> None:
    if rounds < 1:
        raise UserError(f'rounds={rounds}: measure at least one round')


def fastest_at(size: tuple[int, int]) -> Callable[[nn.Module], Form]:
    """A choice for ``fuse_checked(form=...)``: the fastest form here, for an image of ``(height, width)``."""

    def choose(backbone: nn.Module) -> Form:
        if len(_candidates(backbone)) == 1 or not fuse(backbone)[1]:
            return 'default'  # nothing to choose from
        form = fastest_form(backbone, random_image(backbone, size))
        listed = ', '.join(f'{part or "all"}: {name}' for part, name in form.items())
        _log.info('%s: fastest forms at %dx%d pixels: %s', type(backbone).__name__, *size, listed)
        return form

    return choose


def fastest_form(
    backbone: nn.Module, image: Tensor, *, forms: Sequence[str] | None = None, rounds: int = 20
) -> dict[str, str]:
    """The fastest form of each stage, for ``reparam.fuse(form=...)``; where forms tie to 2 %, the first is kept.

    Which form wins depends on the shape, the device, the memory format and the number of threads: those of ``image``
    and of this process count.

    Args:
        backbone: in eval mode, with ``stages``; a model without is measured as a whole.
        image: ``(N, 3, H, W)``, on the backbone's device.
        forms: the candidates; by default those that the modules in ``backbone`` name, but for ``NOT_FOR_SPEED``.
        rounds: measurements of each form; their medians are compared.

    Returns:
        Names of modules and their forms; one that is the first of ``forms`` everywhere is given as ``{'': form}``.
    """
    forms = _candidates(backbone) if forms is None else forms
    chosen = {}
    for name, latencies in stage_latencies(backbone, image, forms=forms, rounds=rounds).items():
        best = min(latencies, key=lambda form: latencies[form].median_ms)
        ties = latencies[best].median_ms > 0.98 * latencies[forms[0]].median_ms
        chosen[name] = forms[0] if ties else best
    return {'': forms[0]} if set(chosen.values()) == {forms[0]} else chosen


@torch.inference_mode()
def stage_latencies(
    backbone: nn.Module, image: Tensor, *, forms: Sequence[str] | None = None, rounds: int = 20
) -> dict[str, dict[str, Latency]]:
    """Latency of each stage in each form, on what that stage gets when the backbone sees ``image``."""
    forms = _candidates(backbone) if forms is None else forms
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


def _candidates(backbone: nn.Module) -> tuple[str, ...]:
    return tuple(form for form in forms_of(backbone) if form not in NOT_FOR_SPEED)
