"""Where a detector's or a segmentor's time goes, part by part, with the trained and with the fused backbone."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.structures import InstanceData
from torch import Tensor, nn

from repnext_mm.apis.build import build_model
from repnext_mm.apis.config import innermost_datasets, load_config, without_teacher
from repnext_mm.errors import UserError
from repnext_mm.hooks import FuseBackboneHook
from repnext_mm.lab.bench.exactness import with_random_statistics
from repnext_mm.lab.draw.subject import read_image
from repnext_mm.models import type_name
from repnext_mm.reparam import FusionReport, fuse_checked
from repnext_mm.reparam.verify import distances, worst
from repnext_mm.timing import Latency, quantiles, wall_times, warm_up

FORMS = ('train', 'fused')
SYNTHETIC_SIZE = (480, 640)  # pixels, of most COCO images
TOLERANCE = 1e-3  # relative, of all that backbone, neck and heads return, in float32
AGREEMENT = 0.95  # near a threshold, rounding decides: so many detections, or pixels, must be the same
PARTS = ('pipeline', 'data_preprocessor', 'backbone', 'neck', 'head', 'post_processing')
"""``pipeline`` is the test pipeline on a decoded image (resize); ``data_preprocessor`` moves, normalizes and pads;
``post_processing`` is what becomes of the heads' outputs (NMS of proposals and boxes, pasting of masks; resize and
argmax of segmentations); ``head`` is the rest of a test step: heads, region features, and what lies between."""


@dataclass(frozen=True, kw_only=True)
class WholeModel:
    """One image through one model, with both forms of its backbone."""

    config: str
    trained: bool  # otherwise the weights are random, and so are proposals and detections
    image: str
    image_shape: tuple[int, int]  # (H, W) of the image
    input_shape: tuple[int, int]  # (H, W) of what the network sees
    device: str
    fusion: str
    counts: Mapping[str, int]  # of proposals and detections, the same for both forms
    error: float  # worst relative error of backbone, neck and heads, fused against trained
    agreement: float | None  # share of equal detections or pixels; None for the detections of random weights
    times: Mapping[str, Mapping[str, Latency]]  # of a form, then of each of ``PARTS`` and the 'total'


def measure_whole_model(
    config_path: str | Path,
    checkpoint: str | Path | None = None,
    *,
    image: str | Path | None = None,
    device: torch.device | str = 'cpu',
    rounds: int = 20,
    warmup_rounds: int = 2,
    warmup_s: float = 1.0,
    options: Mapping[str, Any] | None = None,
    trust_pickle: bool = False,
    progress: Callable[[], object] | None = None,
) -> WholeModel:
    """Time the config's own test step on one image, the two forms in turn.

    The backbone is fused as the config's ``FuseBackboneHook`` does it, or as ``fuse_checked`` does by default. What
    backbone, neck and heads return is compared first. So that both forms do the same work, each round hands the heads
    behind them the proposals and boxes that the trained form found, whichever form found others by rounding.

    Args:
        config_path: of a detector or a segmentor.
        checkpoint: its weights; without it they are random, with random norm statistics, and the score threshold is 0
            so that the mask head has the most detections to work on: head and post-processing take longer than with
            trained weights then.
        image: an image file; default: a synthetic image from a fixed seed.
        device: where to run.
        rounds: timed runs of each form.
        warmup_rounds: and ``warmup_s`` seconds: the least warm-up.
        options: overrides of the config.
        trust_pickle: of the checkpoint, see ``repnext_mm.checkpoints.read_checkpoint``.
        progress: called after each round.

    Raises:
        UserError: a file cannot be used, or the model has no backbone.
        RuntimeError: the fused model's outputs are not those of the trained one.
    """
    if rounds < 1:
        raise UserError(f'rounds={rounds}: measure at least one round')
    config = load_config(config_path, options=options)
    config.model = without_teacher(config.model)
    pixels, described = image_and_name(image)
    model = loaded_model(config, checkpoint, trust_pickle=trust_pickle).to(device)
    pipeline = pipeline_of(config)
    with torch.no_grad():
        fused, report = fused_model(config, model)
        runs = {form: Observed(m, pipeline, pixels) for form, m in zip(FORMS, (model, fused), strict=True)}
        found, agreement = _compared(runs, trained=checkpoint is not None)
        calls = {form: partial(run.timed, runs['train'].handed_on) for form, run in runs.items()}
        warm_up(calls, rounds=warmup_rounds, seconds=warmup_s, device=device)
        for run in runs.values():
            run.parts_ms.clear()
        wall_times(calls, rounds=rounds, device=device, after_round=progress)
    train = runs['train']
    return WholeModel(
        config=Path(config_path).stem,
        trained=checkpoint is not None,
        image=described,
        image_shape=pixels.shape[:2],
        input_shape=train.input_shape,
        device=str(device),
        fusion=str(report),
        counts=train.counts,
        error=found,
        agreement=agreement,
        times={form: {part: quantiles(ms) for part, ms in run.parts_ms.items()} for form, run in runs.items()},
    )


class Observed:
    """One form of a model, and what was recorded of its test steps."""

    def __init__(self, model: Any, pipeline: Callable[[dict[str, Any]], Any], image: np.ndarray) -> None:
        self.model, self.pipeline, self.image = model, pipeline, image
        self.device = next(model.parameters()).device
        self.parts_ms: dict[str, list[float]] = defaultdict(list)
        self.tensors: list[Tensor] = []  # what backbone, neck and heads returned when they were looked at
        self.handed_on: dict[str, Any] = {}  # proposals and boxes, by the head that found them
        self.counts: dict[str, int] = {}
        self.input_shape = (0, 0)

    def looked_at(self, handed_on: Mapping[str, Any]) -> Any:
        """Run once, record what the parts return, and return the result."""
        self.tensors.clear()
        return self._run(Stopwatch(self.device), handed_on, look=True)

    def timed(self, handed_on: Mapping[str, Any]) -> None:
        """Run once and record the time of every part."""
        watch = Stopwatch(self.device)
        self._run(watch, handed_on, look=False)
        parts = {part: watch.ms[part] for part in PARTS if part in watch.ms}
        for part, value in {**parts, 'total': sum(parts.values())}.items():
            self.parts_ms[part].append(value)

    def _run(self, watch: Stopwatch, handed_on: Mapping[str, Any], *, look: bool) -> Any:
        height, width = self.image.shape[:2]
        shapes = {'img_shape': (height, width), 'ori_shape': (height, width)}
        with ExitStack() as patches:
            for owner, method, part, name in _stations(self.model):
                original = getattr(owner, method)
                station = self._station(original, watch, part, name, handed_on, look=look)
                patches.enter_context(mock.patch.object(owner, method, station))
            with watch.part('pipeline'):
                data = self.pipeline({'img': self.image, 'img_path': None, 'img_id': 0, **shapes})
            with watch.part('head'):
                return self.model.test_step({'inputs': [data['inputs']], 'data_samples': [data['data_samples']]})

    def _station(
        self,
        original: Callable[..., Any],
        watch: Stopwatch,
        part: str,
        name: str,
        handed_on: Mapping[str, Any],
        *,
        look: bool,
    ) -> Callable[..., Any]:
        @wraps(original)
        def station(*args: Any, **kwargs: Any) -> Any:
            with watch.part(part):
                result = original(*args, **kwargs)
            with watch.part('noting'):
                if look:
                    self._note(name, (args, kwargs), result)
                return copy.deepcopy(handed_on[name]) if name in handed_on else result

        return station

    def _note(self, name: str, given: Any, result: Any) -> None:
        if name in ('backbone', 'neck'):
            self.tensors += _tensors(result)
        elif name == 'data_preprocessor':
            self.input_shape = tuple(result['inputs'].shape[2:])
        elif name.endswith('.predict_by_feat'):  # of what heads return it makes results
            self.tensors += _tensors(given)
            if _found_boxes(result):
                self.handed_on[name] = copy.deepcopy(result)
                kind = 'proposals' if name.startswith('rpn_head') else 'detections'
                self.counts[kind] = sum(map(len, result))


class Stopwatch:
    """Time by part; a part inside another one counts for itself only."""

    def __init__(self, device: torch.device, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.ms: dict[str, float] = defaultdict(float)
        self._device, self._clock = device, clock
        self._open = ['outside']
        self._since = clock()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def go_on_as(self, name: str) -> None:
        """End the part that runs, and let another one go on in its place."""
        self._switch()
        self._open[-1] = name

    def _switch(self) -> None:
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        now = self._clock()
        self.ms[self._open[-1]] += (now - self._since) * 1e3
        self._since = now


def _compared(runs: Mapping[str, Observed], *, trained: bool) -> tuple[float, float | None]:
    """Worst relative error, and the share of equal results; refuses to time what differs."""
    train, fused = runs['train'], runs['fused']
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled, benchmark=False, allow_tf32=False):
        expected = train.looked_at({})[0]
        alone = fused.looked_at({})[0]
        fused.looked_at(train.handed_on)
    found = worst(distances(fused.tensors, train.tensors))
    agreement = None if 'detections' in train.counts and not trained else _agreement(alone, expected)
    if not found <= TOLERANCE or (agreement is not None and agreement < AGREEMENT):
        raise RuntimeError(
            f'the fused model differs from the trained one by {found:.1e} (relative), with {agreement} of its results '
            f'equal; {TOLERANCE:.0e} and {AGREEMENT} are the limits: nothing was timed, test both forms'
        )
    return found, agreement


def _agreement(result: Any, expected: Any) -> float | None:
    if 'pred_sem_seg' in expected:
        return (result.pred_sem_seg.data == expected.pred_sem_seg.data).double().mean().item()
    if 'pred_instances' not in expected:
        return None
    from torchvision.ops import box_iou

    a, b = result.pred_instances, expected.pred_instances
    if not (len(a) and len(b)):
        return float(len(a) == len(b))
    same = (box_iou(a.bboxes, b.bboxes) > 0.95) & (a.labels[:, None] == b.labels)
    same &= (a.scores[:, None] - b.scores).abs() < 0.01
    return min(int(same.any(0).sum()), int(same.any(1).sum())) / max(len(a), len(b))


def loaded_model(config: Any, checkpoint: str | Path | None, *, trust_pickle: bool) -> Any:
    """The model of a config; random weights and norm statistics where there is no checkpoint."""
    if 'backbone' not in config.model or 'data_preprocessor' not in config.model:
        raise UserError(
            f"model '{type_name(config.model.get('type'))}' has no backbone and data_preprocessor: give the "
            'config of a detector or a segmentor, or time a backbone alone'
        )
    if checkpoint is not None:
        return build_model(config, checkpoint, trust_pickle=trust_pickle)
    test_cfg = config.model.get('test_cfg') or {}
    for part in (test_cfg, test_cfg.get('rcnn') or {}):
        if 'score_thr' in part:
            part['score_thr'] = 0.0
    torch.manual_seed(0)
    model: Any = build_model(config, trust_pickle=trust_pickle)
    with_random_statistics(model.backbone, shape=(2, 3, 64, 64))
    return model


def fused_model(config: Any, model: Any) -> tuple[Any, FusionReport]:
    """The model with its backbone fused as the config's ``FuseBackboneHook`` says, and what that did."""
    for settings in config.get('custom_hooks') or []:
        if type_name(settings['type']) == 'FuseBackboneHook':
            known = {key: value for key, value in settings.items() if key not in ('type', 'priority')}
            return FuseBackboneHook(**known).fuse_backbone(model)
    return fuse_checked(model)


def pipeline_of(config: Any) -> Callable[[dict[str, Any]], Any]:
    """The test pipeline without what reads files."""
    if not config.get('test_dataloader'):
        raise UserError(f"config '{config.filename}' has no test_dataloader: its pipeline prepares the image")
    steps = next(innermost_datasets(config.test_dataloader['dataset']))['pipeline']
    return Compose([step for step in steps if not type_name(step['type']).startswith('Load')])


def image_and_name(path: str | Path | None) -> tuple[np.ndarray, str]:
    """An image file, or a synthetic image, ``(H, W, 3)`` in BGR, and what to call it."""
    if path is None:
        coarse = np.random.default_rng(0).uniform(0, 255, (12, 16, 3)).astype(np.float32)
        smooth = cv2.resize(coarse, SYNTHETIC_SIZE[::-1], interpolation=cv2.INTER_CUBIC)
        return smooth.clip(0, 255).astype(np.uint8), 'synthetic, smoothed noise of seed 0'
    return read_image(path), Path(path).name


def _stations(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, str]]:
    """Where time is taken: owner, method, part, name."""
    for part in ('data_preprocessor', 'backbone', 'neck'):
        module = getattr(model, part, None)
        if isinstance(module, nn.Module):
            yield module, 'forward', part, part
    for name, module in model.named_modules():
        for method in ('predict_by_feat', 'postprocess_result', 'add_pred_to_datasample'):
            if hasattr(module, method):
                yield module, method, 'post_processing', f'{name}.{method}'


def _found_boxes(result: Any) -> bool:
    if not isinstance(result, list) or not all(isinstance(instances, InstanceData) for instances in result):
        return False
    return not any('masks' in instances for instances in result)  # the last step: nothing works on masks


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.float()] if value.is_floating_point() and value.numel() else []
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, list | tuple) else []
