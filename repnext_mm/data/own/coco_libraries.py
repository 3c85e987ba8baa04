"""What mmdet's data set and pycocotools' scoring make of COCO-style annotations: their own code, asked beforehand."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

SMALLEST = 32  # pixels: mmdet leaves smaller images out of training
MOST_SCORED = 100  # boxes of an image that detectors return, and of a class that COCO's AP counts
_PAIRS = 400_000  # images x classes that are scored at most: half a minute


def used_boxes(annotations: Path, classes: Sequence[str]) -> int | None:
    """How many boxes training learns from, by mmdet's own reading and filtering; None where mmdet is not installed."""
    with contextlib.redirect_stdout(io.StringIO()):  # remarks at imports, pycocotools' progress
        try:
            from mmdet.datasets import CocoDataset
        except ImportError:
            return None
        data = CocoDataset(
            ann_file=str(annotations),
            data_prefix=dict(img=''),
            metainfo=dict(classes=tuple(classes)),
            filter_cfg=dict(filter_empty_gt=True, min_size=SMALLEST),
            pipeline=[],
            serialize_data=False,
        )
    return sum(not instance['ignore_flag'] for record in data.data_list for instance in record['instances'])


def perfect_score(content: Mapping[str, Any], classes: Sequence[str], kind: Literal['bbox', 'segm']) -> float | None:
    """COCO's AP of detections that equal the annotations: 1, or the annotations are at odds with the metric.

    Of large sets some images, evenly spread. None where pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        return None
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(dict(content))  # scoring writes into it
        truth.createIndex()
        categories = truth.getCatIds(list(classes))
        images = truth.getImgIds()
        images = images[:: 1 + len(images) * len(categories) // _PAIRS]
        boxes = [box for box in truth.loadAnns(truth.getAnnIds(images, categories)) if not box['iscrowd']]
        found = [{key: box[key] for key in ('image_id', 'category_id', 'bbox')} | {'score': 1.0} for box in boxes]
        if not found:
            return None
        if kind == 'segm':
            for detection, box in zip(found, boxes, strict=True):
                detection['segmentation'] = truth.annToRLE(box)
        scoring = COCOeval(truth, truth.loadRes(found), kind)
        scoring.params.imgIds, scoring.params.catIds = images, categories
        scoring.params.areaRng, scoring.params.areaRngLbl = scoring.params.areaRng[:1], ['all']
        scoring.params.maxDets = [MOST_SCORED]
        scoring.evaluate()
        scoring.accumulate()
        precision = scoring.eval['precision']
    return float(np.mean(precision[precision > -1]))
