"""Mean IoU over the foreground classes: a background that fills most of an image would flatter the mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS


@METRICS.register_module(name='ForegroundIoU')
def build_foreground_iou(
    *,
    ignore_index: int = 255,
    iou_metrics: Sequence[str] = ('mIoU',),
    nan_to_num: int | None = None,
    beta: int = 1,
    collect_device: str = 'cpu',
    prefix: str | None = None,
    output_dir: str | None = None,
    format_only: bool = False,
    keep_results: bool = False,
) -> BaseMetric:
    """mmseg's ``IoUMetric`` whose means leave out class 0, the background.

    Background pixels that are predicted as a digit still count: they enlarge that digit's union. ``keep_results`` is
    what mmseg's own ``tools/test.py --out`` writes into every metric, and ``IoUMetric`` does not use it.
    """
    from mmseg.evaluation import IoUMetric

    class ForegroundIoU(IoUMetric):  # type: ignore[misc]
        def compute_metrics(self, results: list) -> dict[str, float]:
            whole: dict[str, Any] = self.dataset_meta  # type: ignore[has-type]
            self.dataset_meta = {**whole, 'classes': whole['classes'][1:]}
            try:
                return super().compute_metrics([tuple(area[1:] for area in areas) for areas in results])
            finally:
                self.dataset_meta = whole

    return ForegroundIoU(
        ignore_index=ignore_index,
        iou_metrics=list(iou_metrics),
        nan_to_num=nan_to_num,
        beta=beta,
        collect_device=collect_device,
        prefix=prefix,
        output_dir=output_dir,
        format_only=format_only,
    )
