"""The deploy form that runs fastest in the runtime that the export is for."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from repnext_mm.export.parity import probes
from repnext_mm.export.parts import Part
from repnext_mm.export.runtimes import RUNTIMES, open_exported
from repnext_mm.export.suffix import SUFFIXES
from repnext_mm.export.write import export_model
from repnext_mm.reparam.fusible import forms_of
from repnext_mm.timing import NOT_FOR_SPEED, Latency, measure_latency


@dataclass(frozen=True)
class Choice:
    """What was measured, and the winner."""

    form: str
    latencies: dict[str, Latency]  # per form
    refused: dict[str, str]  # forms that could not be exported, and why


def choose_form(
    part: Part,
    *,
    format: str,
    shape: Sequence[int],
    dynamic: bool = True,
    threads: int | None = None,
    rounds: int = 30,
    opset: int | None = None,
    half: bool = False,
) -> Choice:
    """Export every form that keeps no norms, time them in turns in the format's own runtime, keep the fastest.

    The forms differ by what suits a processor and an input size: choose on the machine that will run the file.

    Raises:
        RuntimeError: no form can be exported.
        ValueError: the format has no runtime here.
    """
    if format not in RUNTIMES:
        raise ValueError(
            f"form 'auto' measures in the export's own runtime, and {format!r} has none here: name one of "
            f'{", ".join(forms_of(part.network))}'
        )
    calls, refused = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for form in forms_of(part.network):
            if form in NOT_FOR_SPEED:
                continue
            path = Path(folder) / f'{form}{SUFFIXES[format][0]}'
            graph, _ = part.fused(form)
            try:
                export_model(
                    graph,
                    path,
                    format=format,
                    shape=shape,
                    dynamic=dynamic,
                    reference=part.reference,
                    opset=opset,
                    half=half,
                )
            except RuntimeError as error:
                refused[form] = str(error)
                continue
            calls[form] = open_exported(path, format=format, threads=threads)
        if not calls:
            raise RuntimeError(next(iter(refused.values())))
        image = probes(part.reference, shape, dynamic=False)[0]
        timed = {form: partial(run, image) for form, run in calls.items()}
        latencies = measure_latency(timed, rounds=rounds, warmup_s=0.5)
    return Choice(min(latencies, key=lambda form: latencies[form].median_ms), latencies, refused)
