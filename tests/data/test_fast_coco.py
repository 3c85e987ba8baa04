"""faster-coco-eval gives COCO's numbers; ``python -m tests.data.test_fast_coco IMAGES`` times both on such data."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from mmengine.registry import METRICS, init_default_scope

import repnext_mm.data
from repnext_mm.data import fast_coco

SIZE, CLASSES = (480, 640), 80


def write_truth(path, images, generator):
    """Annotations in COCO's density: seven objects an image, some of them crowds; boxes, masks that fill them."""
    annotations = []
    for image in range(images):
        for _ in range(generator.integers(1, 14)):
            w, h = generator.uniform(8, 200, 2).tolist()
            x, y = generator.uniform(0, SIZE[1] - w), generator.uniform(0, SIZE[0] - h)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image,
                    category_id=int(generator.integers(CLASSES)) + 1,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=int(generator.random() < 0.02),
                    segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
                )
            )
    content = dict(
        images=[dict(id=image, width=SIZE[1], height=SIZE[0], file_name=f'{image}.jpg') for image in range(images)],
        categories=[dict(id=at + 1, name=f'class {at}') for at in range(CLASSES)],
        annotations=annotations,
    )
    path.write_text(json.dumps(content))
    return content


def guessed(content, generator, per_object=3):
    """Detections near the objects, some of another class; from an image's id to boxes, scores and labels."""
    found = {image['id']: [] for image in content['images']}
    for item in content['annotations']:
        for _ in range(per_object):
            x, y, w, h = np.array(item['bbox']) + generator.normal(0, 4, 4)
            label = item['category_id'] - 1 if generator.random() < 0.8 else int(generator.integers(CLASSES))
            score = round(generator.random(), 2)  # ties, too
            found[item['image_id']].append(((x, y, x + max(w, 2), y + max(h, 2)), score, label))
    return found


def metric_of(kind, path, content, detections, **options):
    init_default_scope('mmdet')
    import mmdet.evaluation  # noqa: F401

    metric = METRICS.build(dict(type=kind, ann_file=str(path), **options))
    metric.dataset_meta = dict(classes=[item['name'] for item in content['categories']])
    for image, items in detections.items():
        boxes = torch.tensor([box for box, _, _ in items]).reshape(-1, 4)
        instances = dict(
            bboxes=boxes,
            scores=torch.tensor([score for _, score, _ in items]),
            labels=torch.tensor([label for *_, label in items], dtype=torch.long),
        )
        if 'segm' in options['metric']:
            masks = instances['masks'] = torch.zeros(len(items), *SIZE, dtype=torch.bool)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().int().clamp(min=0).tolist(), strict=True):
                mask[y1:y2, x1:x2] = True
        metric.process({}, [dict(img_id=image, ori_shape=SIZE, pred_instances=instances)])
    return metric


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp('coco') / 'truth.json'
    content = write_truth(path, 20, generator)
    return path, content, guessed(content, generator)


@pytest.mark.parametrize('options', [{}, {'classwise': True}, {'proposal_nums': (1, 10, 100)}], ids=str)
def test_the_numbers_are_those_of_pycocotools(data, options):
    pytest.importorskip('faster_coco_eval')
    found = {}
    for kind in ('CocoMetric', 'FastCocoMetric'):
        metric = metric_of(kind, *data, metric=['bbox', 'segm'], **options)
        found[kind] = metric.evaluate(len(data[2]))
    first, second = found.values()
    assert first.keys() == second.keys()
    assert first['coco/bbox_mAP'] > 0.1
    np.testing.assert_allclose(list(first.values()), list(second.values()), rtol=0, atol=1e-9)


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_before_rounding(data, kind):
    """mmdet rounds its results; the curves themselves agree to 1e-9."""
    fast = pytest.importorskip('faster_coco_eval').COCOeval_faster
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    path, content, detections = data
    metric = metric_of('CocoMetric', *data, metric=['bbox', 'segm'])
    metric.cat_ids = metric.img_ids = [item['id'] for item in content['categories']]
    results = metric.results2json([result for _, result in metric.results], str(path.with_suffix('')))
    truth, made = COCO(str(path)), {}
    for evaluator in (COCOeval, fast):
        one = made[evaluator] = evaluator(truth, truth.loadRes(results[kind]), kind)
        one.evaluate()
        one.accumulate()
        one.summarize()
    first, second = made.values()
    assert len(detections) == 20
    for name in ('precision', 'recall', 'scores'):
        np.testing.assert_allclose(first.eval[name], second.eval[name], rtol=0, atol=1e-9)
    np.testing.assert_allclose(first.stats, second.stats[: len(first.stats)], rtol=0, atol=1e-9)


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'faster_coco_eval', None)
    with pytest.raises(ValueError, match='FastCocoMetric needs faster-coco-eval: pip install faster-coco-eval, or'):
        repnext_mm.data.build_fast_coco_metric(ann_file='any')
    assert METRICS.get('FastCocoMetric') is fast_coco.build_fast_coco_metric


def main(images):
    generator = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        path = Path(folder, 'truth.json')
        content = write_truth(path, images, generator)
        detections = guessed(content, generator)
        for names in (['bbox'], ['bbox', 'segm']):
            for kind in ('CocoMetric', 'FastCocoMetric'):
                metric = metric_of(kind, path, content, detections, metric=names)
                start = time.perf_counter()
                metric.evaluate(images)
                sys.stdout.write(
                    f'{images} images, {" and ".join(names)}, {kind}: {time.perf_counter() - start:.1f} s\n'
                )


if __name__ == '__main__':
    main(int(sys.argv[1]))
