"""From a config or an arch to a file: the library call behind tools/export.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repnext_mm.export.choose import Choice, choose_form
from repnext_mm.export.parts import load_part
from repnext_mm.export.suffix import check_format, format_of
from repnext_mm.export.write import ExportReport, check_options, export_model
from repnext_mm.reparam import FusionReport
from repnext_mm.reparam.fusible import Form, check_form


@dataclass(frozen=True, kw_only=True)
class ExportedPart:
    """What was fused, chosen and written."""

    export: ExportReport
    fusion: FusionReport
    form: Form
    choice: Choice | None  # what form='auto' measured


def export_part(
    source: str | Path,
    path: str | Path,
    *,
    checkpoint: str | None = None,
    part: str | None = None,
    form: Form = 'default',
    shape: Sequence[int] = (1, 3, 224, 224),
    dynamic: bool = True,
    normalize: bool | None = None,
    threads: int | None = None,
    opset: int | None = None,
    half: bool = False,
    trust_pickle: bool = False,
    options: Mapping[str, Any] | None = None,
) -> ExportedPart:
    """Fuse a network and export it; the file is compared with the network as it was trained.

    Args:
        source, checkpoint, part, trust_pickle, options: see ``load_part``.
        path: its end names the format, see ``format_of``.
        form: as in ``repnext_mm.reparam.fuse``, per stage too (``{'stages.0': 'dense'}``), or ``'auto'``: see
            ``choose_form``.
        shape, dynamic, opset, half: see ``export_model``.
        normalize: see ``load_part``; by default for Core ML only, which takes pictures.
        threads: of the runtime that ``'auto'`` measures in.

    Raises:
        FileNotFoundError, RuntimeError, ValueError: one sentence with the value, the rule and the way out.
    """
    format = format_of(path)
    check_format(format)
    check_options(format, opset=opset, half=half)
    if form != 'auto':
        check_form(form)
    chosen = load_part(
        source,
        checkpoint=checkpoint,
        part=part,
        normalize=format == 'coreml' if normalize is None else normalize,
        trust_pickle=trust_pickle,
        options=options,
    )
    choice = None
    if form == 'auto':
        choice = choose_form(
            chosen, format=format, shape=shape, dynamic=dynamic, threads=threads, opset=opset, half=half
        )
        form = choice.form
    graph, fusion = chosen.fused(form)
    report = export_model(
        graph,
        path,
        format=format,
        shape=shape,
        dynamic=dynamic,
        reference=chosen.reference,
        output_names=chosen.output_names,
        opset=opset,
        half=half,
    )
    return ExportedPart(export=report, fusion=fusion, form=form, choice=choice)
