"""Tests by several processes give one process's metrics and predictions exactly, whatever does not divide evenly."""

import json
import pickle

import numpy as np
import pytest
import torch

from repnext_mm.data.scene_files import CLASSES
from tests.reliability.jobs import ROOT, SIDE, metrics_of, run_job, write_config

pytestmark = pytest.mark.slow

LAST = {'detection': 'epoch_2.pth', 'segmentation': 'iter_4.pth', 'classification': 'epoch_3.pth'}
IMAGES = {'detection': 5, 'segmentation': 5, 'classification': 41}


@pytest.fixture(scope='module', params=list(LAST))
def trained(request, tmp_path_factory):
    """Trained by two processes, which make the data themselves."""
    folder = tmp_path_factory.mktemp(request.param)
    config = write_config(folder, request.param)
    output = run_job(ROOT / 'tools/dist_train.sh', config, 2, cwd=folder)
    return request.param, folder, config, output


def test_training_logs_once_and_makes_its_data_once(trained):
    task, folder, _, output = trained
    assert 'Distributed launcher: pytorch' in output
    assert 'GPU number: 2' in output
    assert output.count('Saving checkpoint at') == {'detection': 2, 'segmentation': 2, 'classification': 3}[task]
    steps = {'detection': 4, 'segmentation': 4, 'classification': 12}[task]
    assert sum('(train)' in line for line in output.splitlines()) == steps
    assert output.count('No GPU here: processes exchange gradients through gloo') == 1
    assert output.count('No GPU here: batch norms') == (0 if task == 'classification' else 1)
    assert len(list((folder / 'work_dirs' / task).glob('*/*.log'))) == 1
    assert [path.name for path in (folder / 'data').iterdir()] == [
        'digits' if task == 'classification' else 'digit_scenes'
    ]


def test_metrics_and_predictions_are_those_of_one_process(trained):
    task, folder, config, _ = trained
    checkpoint = folder / 'work_dirs' / task / LAST[task]

    def tested(name, processes, *more):
        out = folder / f'{name}.pkl'
        tool = [ROOT / 'tools/test.py', config, checkpoint]
        if processes > 1:
            tool = [ROOT / 'tools/dist_test.sh', config, checkpoint, processes]
        output = run_job(*tool, '--out', out, '--work-dir', folder / name, *more, cwd=folder)
        assert ' -> 0; relative error' in output  # no norms are left: it was fused
        return metrics_of(folder / name), pickle.loads(out.read_bytes())

    more = []
    if task == 'detection':  # an untrained network finds nothing: let what it says be true, more or less
        _, predictions = tested('unscored', 1)
        truth = write_truth(folder / 'truth.json', predictions)
        more = ['--cfg-options', f'test_evaluator.ann_file={truth}']
    elif task == 'segmentation':  # nor does it find a foreground
        more = ['--cfg-options', 'test_evaluator.type=IoUMetric']
    metrics, predictions = tested('one', 1, *more)
    assert len(predictions) == IMAGES[task]
    assert any(0 < value < (1 if task == 'detection' else 100) for value in metrics.values()), metrics
    for name, count in (('two', 2), ('four', 4)):
        others, other_predictions = tested(name, count, *more)
        assert others == metrics
        assert same(other_predictions, predictions)
    assert not same([*predictions[:-1], predictions[0]], predictions)


def test_validation_while_training_is_that_of_the_checkpoint(tmp_path):
    """With SyncBuffersHook: without, plain norms have other statistics in each process."""
    hooks = "custom_hooks = [dict(type='FuseBackboneHook'), dict(type='SyncBuffersHook')]\n"
    config = write_config(tmp_path, 'classification', more=hooks)
    run_job(ROOT / 'tools/dist_train.sh', config, 2, cwd=tmp_path)
    (log,) = tmp_path.glob('work_dirs/classification/*/vis_data/scalars.json')
    validated = json.loads(log.read_text().splitlines()[-1])['accuracy/top1']
    checkpoint = tmp_path / 'work_dirs/classification/epoch_3.pth'
    run_job(ROOT / 'tools/test.py', config, checkpoint, '--work-dir', tmp_path / 'tested', cwd=tmp_path)
    assert metrics_of(tmp_path / 'tested')['accuracy/top1'] == validated


def write_truth(path, predictions):
    """COCO annotations that the predictions partly meet: every third is left out, every second is moved."""
    annotations = []
    for found_in in predictions:
        found = found_in['pred_instances']
        for index, (box, label) in enumerate(zip(found['bboxes'].tolist(), found['labels'].tolist(), strict=True)):
            left, top, right, bottom = box
            if index % 3 == 0 or min(right - left, bottom - top) < 4:
                continue
            left += (index % 2) * 0.2 * (right - left)
            width, height = right - left, bottom - top
            corners = [left, top, right, top, right, bottom, left, bottom]
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': found_in['img_id'],
                    'category_id': label + 1,
                    'iscrowd': 0,
                    'bbox': [left, top, width, height],
                    'area': width * height,
                    'segmentation': [corners],
                }
            )
    assert len(annotations) > 10
    path.write_text(
        json.dumps(
            {
                'images': [{'id': p['img_id'], 'file_name': '', 'height': SIDE, 'width': SIDE} for p in predictions],
                'categories': [{'id': number, 'name': name} for number, name in enumerate(CLASSES, start=1)],
                'annotations': annotations,
            }
        )
    )
    return path


def same(one, other):
    """Equal to the last bit, however deep."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
