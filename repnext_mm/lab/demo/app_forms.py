"""A model in train form and fused, run on one picture: results, differences, latency."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.registry import init_default_scope
from numpy.typing import NDArray
from torch import nn

from repnext_mm.apis.classes import classes_in_checkpoint, classes_of_config
from repnext_mm.checkpoints import read_checkpoint
from repnext_mm.hooks import FuseBackboneHook
from repnext_mm.lab.demo.app_choices import Pair
from repnext_mm.lab.demo.app_results import DIFFERENCES, FINDINGS, Findings
from repnext_mm.lab.draw.subject import Seen, Subject, load_subject, see
from repnext_mm.reparam import FusionReport, relative_error
from repnext_mm.timing import Latency, measure_latency

TRAIN, FUSED = 'train form', 'fused'
_WARMUP_S = 0.5


@dataclass(frozen=True, kw_only=True)
class BothForms:
    """One model twice: as it was trained, and with its backbone fused."""

    subject: Subject
    fused: nn.Module  # the same object where there was nothing to fuse
    report: FusionReport
    scope: str
    classes: tuple[str, ...]
    colours: tuple[str, ...]  # '#rrggbb' of each class
    device: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What both forms make of one picture."""

    image: NDArray[np.uint8]  # (H, W, 3), RGB
    input_shape: tuple[int, ...]  # of the network, (1, 3, H, W)
    findings: Findings  # of the fused network
    differences: dict[str, str]  # what is compared: the largest difference; empty where nothing was fused
    latency: dict[str, dict[str, Latency]]  # part of the network: form: milliseconds
    threads: int


def load_forms(pair: Pair) -> BothForms:
    """Read a config and, without trusting pickle, its checkpoint; fuse and verify the backbone.

    Raises:
        FileNotFoundError, TypeError, ValueError: a file cannot be read, or the two do not fit each other.
        RuntimeError: the fused backbone is not within the hook's tolerance.
    """
    subject = load_subject(pair.config, pair.checkpoint)
    assert subject.config is not None
    scope = subject.config.get('default_scope')
    if scope not in FINDINGS or subject.config.get('test_dataloader') is None:
        raise ValueError(
            f"config '{pair.config}' (default_scope={scope!r}) cannot be shown: it takes a test_dataloader and a "
            f'default_scope of {", ".join(FINDINGS)}'
        )
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    subject.model.to(device)
    fused, report = FuseBackboneHook().fuse_backbone(subject.model)
    meta = _dataset_meta(pair, subject)
    classes = tuple(map(str, meta.get('classes') or ()))
    return BothForms(
        subject=subject,
        fused=fused,
        report=report,
        scope=scope,
        classes=classes,
        colours=_colours(meta.get('palette'), count=len(classes)),
        device=device,
    )


@torch.no_grad()
def run_forms(forms: BothForms, picture: str, *, score_threshold: float = 0.3, rounds: int = 10) -> Outcome:
    """Run both forms on a picture, and time them in turns.

    Args:
        forms: the model.
        picture: a picture file.
        score_threshold: weaker detections are not shown.
        rounds: of the measurement; each runs everything once.

    Raises:
        ValueError: the picture cannot be read, or is not for this network.
    """
    import cv2

    init_default_scope(forms.scope)
    seen = see(forms.subject, picture)
    image: Any = cv2.imread(picture)  # as the pipelines read it
    sample = _predict(forms.fused, seen)
    findings = FINDINGS[forms.scope](sample, forms.classes, forms.colours, score_threshold)
    differences: dict[str, str] = {}
    models = {TRAIN: forms.subject.model}
    if forms.report:
        models[FUSED] = forms.fused
        backbone, fused = forms.subject.backbone, getattr(forms.fused, 'backbone')  # noqa: B009
        error = max(relative_error(fused, backbone, seen.inputs))
        differences['features of the backbone, relative'] = f'{error:.1e}'
        differences |= DIFFERENCES[forms.scope](_predict(forms.subject.model, seen), sample)
    return Outcome(
        image=np.ascontiguousarray(image[..., ::-1]),
        input_shape=tuple(seen.inputs.shape),
        findings=findings,
        differences=differences,
        latency=_latency(models, seen, rounds=rounds, device=forms.device),
        threads=torch.get_num_threads(),
    )


def _predict(model: Any, seen: Seen) -> Any:
    samples = [sample.clone() for sample in seen.samples or ()]  # results are written into them
    return model(seen.inputs, samples, mode='predict')[0].cpu()


def _latency(models: Mapping[str, Any], seen: Seen, *, rounds: int, device: str) -> dict[str, dict[str, Latency]]:
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for form, model in models.items():
        calls['backbone', form] = partial(model.backbone, seen.inputs)
        calls['whole network', form] = partial(_predict, model, seen)
    found = measure_latency(
        {' '.join(key): call for key, call in calls.items()},
        rounds=rounds,
        warmup_rounds=2,
        warmup_s=_WARMUP_S,
        device=device,
    )
    return {
        part: {form: found[f'{part} {form}'] for form in models} for part in dict.fromkeys(part for part, _ in calls)
    }


def _dataset_meta(pair: Pair, subject: Subject) -> Mapping[str, Any]:
    """Classes and palette of the checkpoint, else those of the config's test data."""
    assert subject.config is not None
    known = classes_in_checkpoint(read_checkpoint(pair.checkpoint))
    try:
        return known or classes_of_config(subject.config)
    except Exception:  # without its data, a data set may raise anything; numbers will do for names
        return {}


def _colours(palette: Any, *, count: int) -> tuple[str, ...]:
    if isinstance(palette, list | tuple) and len(palette) >= count:
        return tuple('#{:02x}{:02x}{:02x}'.format(*map(int, colour)) for colour in palette[:count])
    hues = (index * 0.618 % 1 for index in range(count))  # the golden section keeps neighbours apart
    return tuple(
        '#{:02x}{:02x}{:02x}'.format(*(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, 0.95)))
        for hue in hues
    )
