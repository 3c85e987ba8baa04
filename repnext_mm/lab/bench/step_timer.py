"""A test step of a whole model, watched from outside: the time of each part, and what passes between them."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest import mock

import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

PARTS = ('pipeline', 'data_preprocessor', 'backbone', 'neck', 'head', 'post_processing')
"""``pipeline`` is the test pipeline on a decoded image (resize); ``data_preprocessor`` moves, normalises and pads;
``post_processing`` is what becomes of the heads' outputs (NMS of proposals and boxes, pasting of masks; resize and
argmax of segmentations); ``head`` is the rest of a test step: heads, region features, and what lies between."""


class Observed:
    """One form of a model, and what it was seen to do."""

    def __init__(self, model: Any, pipeline: Callable[[dict[str, Any]], Any], picture: np.ndarray) -> None:
        self.model, self.pipeline, self.picture = model, pipeline, picture
        self.device = next(model.parameters()).device
        self.parts_ms: dict[str, list[float]] = defaultdict(list)
        self.tensors: list[Tensor] = []  # what backbone, neck and heads returned when they were looked at
        self.handed_on: dict[str, Any] = {}  # proposals and boxes, by the head that found them
        self.counts: dict[str, int] = {}
        self.input_shape = (0, 0)

    def looked_at(self, handed_on: Mapping[str, Any]) -> Any:
        """The result of a run that notes what passes by."""
        self.tensors.clear()
        return self._run(Stopwatch(self.device), handed_on, look=True)

    def timed(self, handed_on: Mapping[str, Any]) -> None:
        """A run that notes the time of every part."""
        watch = Stopwatch(self.device)
        self._run(watch, handed_on, look=False)
        parts = {part: watch.ms[part] for part in PARTS if part in watch.ms}
        for part, value in {**parts, 'total': sum(parts.values())}.items():
            self.parts_ms[part].append(value)

    def _run(self, watch: Stopwatch, handed_on: Mapping[str, Any], *, look: bool) -> Any:
        height, width = self.picture.shape[:2]
        shapes = {'img_shape': (height, width), 'ori_shape': (height, width)}
        with ExitStack() as patches:
            for owner, method, part, name in _stations(self.model):
                original = getattr(owner, method)
                station = self._station(original, watch, part, name, handed_on, look=look)
                patches.enter_context(mock.patch.object(owner, method, station))
            with watch.part('pipeline'):
                data = self.pipeline({'img': self.picture, 'img_path': None, 'img_id': 0, **shapes})
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

    def __init__(self, device: torch.device) -> None:
        self.ms: dict[str, float] = defaultdict(float)
        self._device = device
        self._open = ['outside']
        self._since = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def _switch(self) -> None:
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.ms[self._open[-1]] += (now - self._since) * 1e3
        self._since = now


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
