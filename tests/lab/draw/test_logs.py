"""Curves of mmengine's logs: epochs, iterations, resumed runs."""

from __future__ import annotations

import json
from itertools import pairwise

import cv2
import pytest

from repnext_mm.lab.draw.logs import curve_names, plot_runs, read_run
from tests.tools.running import ROOT


def write(folder, *lines):
    path = folder / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(json.dumps(line) for line in lines) + '\n')
    return path


def trained(iteration, loss, **more):
    return {'lr': 0.1, 'base_lr': 0.1, 'loss': loss, 'time': 1.0, 'iter': iteration, 'step': iteration, **more}


@pytest.fixture
def epochs(tmp_path):
    lines = [trained(10 * i + 22 * e, 1 / (e + i), epoch=e + 1) for e in range(3) for i in (1, 2)]
    lines[4:4] = [{'accuracy/top1': 50.0, 'time': 0.1, 'step': 2}]
    return write(tmp_path / 'epochs/20260101_000000', *lines)


@pytest.fixture
def iterations(tmp_path):
    lines = [trained(50 * i, 1 / i, **{'decode.loss_ce': 1.0}) for i in range(1, 5)]
    tested = {'mIoU': 40.0, 'aAcc': float('nan'), 'step': 200}
    return write(tmp_path / 'iterations/20260101_000000', *lines, tested)


def test_epochs_become_iterations(epochs):
    run = read_run(epochs.parents[2])
    assert run.name == 'epochs'
    assert run.epoch_length == 22
    assert list(run.training['loss']) == [10, 20, 32, 42, 54, 64]
    assert run.validation == {'accuracy/top1': {44: 50.0}}
    assert set(run.training) == {'loss', 'lr'}


def test_iterations_stay(iterations):
    run = read_run(iterations)
    assert run.name == '20260101_000000'
    assert run.epoch_length is None
    assert run.validation['mIoU'] == {200: 40.0}


def test_a_resumed_run_replaces_what_it_repeats(iterations):
    work_dir = iterations.parents[2]
    write(work_dir / '20260102_000000', trained(150, 9.0), trained(250, 8.0))
    write(work_dir / '20260103_000000', {'mIoU': 1.0, 'step': 0})  # a test's log
    run = read_run(work_dir)
    assert run.training['loss'] == {50: 1.0, 100: 0.5, 150: 9.0, 250: 8.0}
    assert not run.validation


def test_what_is_drawn(epochs, iterations, tmp_path):
    runs = [read_run(epochs, name='a'), read_run(iterations, name='b')]
    assert curve_names(runs) == ['loss', 'decode.loss_ce', 'accuracy/top1', 'mIoU', 'aAcc']
    assert curve_names(runs, ['lr', '*/top1']) == ['lr', 'accuracy/top1']
    with pytest.raises(ValueError, match="no curve is called 'mAP': choose from"):
        curve_names(runs, ['loss', 'mAP'])
    wide = cv2.imread(str(plot_runs(runs, tmp_path / 'all.png')))
    narrow = cv2.imread(str(plot_runs(runs[:1], tmp_path / 'one.png', keys=['loss'], title='one')))
    assert wide.std() > 5
    assert wide.shape[1] > 2 * narrow.shape[1]
    with pytest.raises(ValueError, match='cannot be told apart'):
        plot_runs([runs[0], runs[0]], tmp_path / 'twice.png')


def test_broken_logs(tmp_path, iterations):
    with pytest.raises(ValueError, match='holds no log of a training'):
        read_run(tmp_path / 'nowhere')
    text = iterations.read_text()
    iterations.write_text(text + '{"loss": 0.')  # the last line of a run that was killed
    assert len(read_run(iterations).training['loss']) == 4
    iterations.write_text('{"loss": 0.\n' + text)
    with pytest.raises(ValueError, match='line 1 is not JSON'):
        read_run(iterations)
    iterations.write_text(text + '{"loss": 1}\n')
    with pytest.raises(ValueError, match="line 6 has no 'step'"):
        read_run(iterations)
    iterations.write_text('{"loss": 1}\n')
    with pytest.raises(ValueError, match="a line that is not an epoch's .*: give mmengine's vis_data/scalars.json"):
        read_run(iterations)


MAIN = {'train_lr': 1e-6, 'train_loss': 6.9, 'test_loss': 6.8, 'test_acc1': 0.1, 'test_acc5': 0.7, 'n_parameters': 9}
HEADER = {'env_info': 'sys.platform: linux', 'config': '...', 'seed': 0, 'exp_name': 'x.py', 'epoch': 0, 'iter': 0}


def text_of(*lines):
    return '\n'.join(json.dumps(line) for line in lines) + '\n'


def of_mmcv(mode, epoch, iteration, **values):
    return {'mode': mode, 'epoch': epoch, 'iter': iteration, 'lr': 2e-4, 'memory': 9, 'time': 1.0, **values}


@pytest.fixture
def logs(tmp_path):
    """A small log of each foreign format, as those scripts write them."""
    written = {
        'log.txt': text_of(*({**MAIN, 'epoch': epoch, 'test_acc1': 10.0 + epoch} for epoch in range(3))),
        'summary.csv': 'epoch,train_loss,eval_loss,eval_top1,eval_top5\n0,6.8,6.6,0.8,3.1\n1,6.2,4.6,13.8,32.1\n',
        'detection.log.json': text_of(
            HEADER,
            of_mmcv('train', 1, 50, loss=2.0, loss_cls=1.5),
            of_mmcv('train', 1, 100, loss=1.0, loss_cls=0.5),
            of_mmcv('val', 1, 7, bbox_mAP=0.2, bbox_mAP_50=0.4, bbox_mAP_copypaste='0.2 0.4'),
            of_mmcv('train', 2, 50, loss=0.5, loss_cls=0.2),
            of_mmcv('train', 2, 100, loss=0.4, loss_cls=0.2),
            of_mmcv('val', 2, 7, bbox_mAP=0.3, bbox_mAP_50=0.5, bbox_mAP_copypaste='0.3 0.5'),
        ),
        'segmentation.json': text_of(
            *(
                line
                for step in (1, 2, 3)
                for line in (
                    of_mmcv('train', 1 + step // 3, 1000 * step, loss=1 / step, **{'decode.loss_ce': 1 / step}),
                    of_mmcv('val', 1 + step // 3, 5, mIoU=0.125 * step, aAcc=0.5, **{'IoU.wall': 0.9, 'Acc.sky': 1.0}),
                )
            )
        ),
    }
    for name, text in written.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_json_lines_of_the_authors(logs):
    run = read_run(logs / 'log.txt')
    assert (run.name, run.epoch_length, run.epochs_only) == ('log', 1, True)
    assert run.training == {'lr': dict.fromkeys((1, 2, 3), 1e-6), 'loss': dict.fromkeys((1, 2, 3), 6.9)}
    assert set(run.validation) == {'accuracy/top1', 'accuracy/top5', 'val/loss'}
    assert run.validation['accuracy/top1'] == {1: 10.0, 2: 11.0, 3: 12.0}


def test_summary_of_timm(logs):
    run = read_run(logs / 'summary.csv')
    assert run.training == {'loss': {1: 6.8, 2: 6.2}}
    assert run.validation == {
        'val/loss': {1: 6.6, 2: 4.6},
        'accuracy/top1': {1: 0.8, 2: 13.8},
        'accuracy/top5': {1: 3.1, 2: 32.1},
    }


def test_mmcv_by_epoch(logs):
    run = read_run(logs / 'detection.log.json')
    assert (run.name, run.epoch_length, run.epochs_only) == ('detection', 100, False)
    assert run.training['loss'] == {50: 2.0, 100: 1.0, 150: 0.5, 200: 0.4}
    assert run.validation == {'coco/bbox_mAP': {100: 0.2, 200: 0.3}, 'coco/bbox_mAP_50': {100: 0.4, 200: 0.5}}


def test_mmcv_by_iteration(logs):
    """Its evaluations count their own iterations, and its epochs mean nothing."""
    run = read_run(logs / 'segmentation.json')
    assert run.epoch_length is None
    assert run.training['decode.loss_ce'] == {1000: 1.0, 2000: 0.5, 3000: 1 / 3}
    assert run.validation == {
        'mIoU': {1000: 12.5, 2000: 25.0, 3000: 37.5},
        'aAcc': dict.fromkeys((1000, 2000, 3000), 50),
    }


def test_a_folder_of_another_script(logs):
    for name in ('detection.log.json', 'summary.csv', 'segmentation.json'):
        (logs / name).unlink()
    run = read_run(logs)
    assert run.name == logs.name
    assert len(run.validation['accuracy/top1']) == 3


def test_ours_beside_theirs(logs, epochs, iterations, tmp_path):
    ours, theirs = read_run(epochs, name='ours'), read_run(logs / 'log.txt', name='theirs')
    assert cv2.imread(str(plot_runs([ours, theirs], tmp_path / 'both.png'))).std() > 5
    with pytest.raises(ValueError, match=r'theirs and steps have no axis in common: .* a figure each'):
        plot_runs([theirs, read_run(iterations, name='steps')], tmp_path / 'no.png')


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('a.csv', 'epoch,comment\n0,x\n'),
        ('a.csv', 'step,eval_top1\n0,1.0\n'),
        ('a.csv', ''),
        ('a.txt', '[1, 2]\n'),
        ('a.txt', '{"epoch": 0, "test_acc1": "high"}\n'),
        ('a.txt', '{"epoch": 0}\n'),
        ('a.txt', ''),
    ],
    ids=['no-curve', 'no-epoch', 'empty-csv', 'list', 'word', 'nothing', 'empty'],
)
def test_no_log(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"give mmengine's vis_data/scalars\.json, mmcv 1\.x's"):
        read_run(tmp_path / name)


@pytest.mark.parametrize(('name', 'top1'), [('convnext_femto', 72.37), ('modified_a', 74.28), ('modified_b', 74.19)])
def test_curves_of_the_ablation(name, top1):
    run = read_run(ROOT / f'docs/reported/ablation_{name}.csv')
    assert round(max(run.validation['accuracy/top1'].values()), 2) == top1
    assert len(run.training['loss']) == 120


def test_numbers_of_a_long_run_stay_apart(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr('repnext_mm.lab.draw.logs.save_png', lambda figure, path: figures.append(figure))
    lines = [trained(500 * i, 1.0, **{f'decode.loss_{name}': 1.0 for name in 'abcdef'}) for i in range(1, 161)]
    plot_runs([read_run(write(tmp_path / 'long', *lines))], 'logs.png')
    figures[0].draw_without_rendering()
    for axis in (axis for axis in figures[0].axes if axis.get_visible()):
        boxes = [label.get_window_extent() for label in axis.get_xticklabels() if label.get_text()]
        assert len(boxes) > 3
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
