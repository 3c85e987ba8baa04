"""COCO's metrics by faster-coco-eval, in the place of pycocotools, which takes minutes on the whole validation set."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from repnext_mm.errors import MissingPackageError


@METRICS.register_module(name='FastCocoMetric')
def build_fast_coco_metric(**options: Any) -> BaseMetric:
    """mmdet's ``CocoMetric``, evaluated by faster-coco-eval with the same numbers. Arguments as of ``CocoMetric``.

    OneDL's mmdet has a ``FasterCocoMetric`` of its own, OpenMMLab's has none; this one is the metric of either.

    Raises:
        MissingPackageError: faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCOeval_faster
    except ImportError as error:
        raise MissingPackageError(
            "FastCocoMetric needs faster-coco-eval: pip install faster-coco-eval, or set type='CocoMetric'"
        ) from error
    from mmdet.evaluation.metrics import coco_metric

    class FastCocoMetric(coco_metric.CocoMetric):  # type: ignore[misc]
        def compute_metrics(self, results: list) -> dict[str, float]:
            with patch.object(coco_metric, 'COCOeval', COCOeval_faster):
                return super().compute_metrics(results)

    return FastCocoMetric(**options)
