"""One seed, one result: losses and weights of two runs are equal bit by bit on a CPU, and another seed's are not."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from repnext_mm.apis import prepare_training, run_training
from repnext_mm.checkpoints import read_checkpoint
from repnext_mm.data import SceneSet, ensure_digits, ensure_scenes
from tests.tools.running import ROOT, options, run_tool

TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}
TASKS = {
    'classification': ('repnext_m0_digits_cls.py', 'epoch_2.pth'),
    'detection': ('mask_rcnn_repnext_m0_digits.py', 'epoch_2.pth'),
    'segmentation': ('semantic_fpn_repnext_m0_digits.py', 'iter_4.pth'),
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    ensure_digits(folder / 'digits')
    ensure_scenes(folder / 'scenes', SceneSet(train=8, val=2))
    return folder


def losses(work_dir: Path) -> list[float]:
    """Every logged loss; what only the clock decides is left out."""
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    found = [row['loss'] for row in rows if 'loss' in row]
    assert len(found) >= 4
    return found


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(path)['state_dict'])


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.mark.filterwarnings('ignore:.*instance named of visualizer has been created')
def test_two_trainings_in_one_process(data, tmp_path):
    """The state that the first one leaves behind (generators, registries) does not reach the second."""

    def trained(name, seed):
        config = prepare_training(
            ROOT / 'configs' / TASKS['classification'][0],
            work_dir=str(tmp_path / name),
            options={
                'data_root': str(data / 'digits'),
                'model.backbone': {'arch': {'_delete_': True, **TINY}, 'drop_path_rate': 0.2},
                'model.head.in_channels': 64,
                'train_dataloader.dataset.indices': 32,
                'train_dataloader.batch_size': 8,
                'train_dataloader.num_workers': 0,
                'val_dataloader': None,
                'val_cfg': None,
                'val_evaluator': None,
                'train_cfg': {'_delete_': True, 'type': 'EpochBasedTrainLoop', 'max_epochs': 2},
                'param_scheduler.warmup_epochs': 1,
                'default_hooks.logger.interval': 1,
                'default_hooks.checkpoint.interval': 2,
                'randomness': {'seed': seed},
            },
        )
        config.experiment_name = name  # what mmengine keeps its histories by
        history, _ = run_training(config).message_hub.get_scalar('train/loss').data
        assert len(history) == 8
        return list(history), weights(tmp_path / name / 'epoch_2.pth')

    (first, first_weights), (second, second_weights) = trained('a', 7), trained('b', 7)
    other, other_weights = trained('c', 8)
    assert first == second
    assert same(first_weights, second_weights)
    assert first != other
    assert not same(first_weights, other_weights)


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_two_runs_of_the_tool(task, data, tmp_path):
    """Data workers, drop path, augmentation and all; one thread, since threads add in an order of their own."""
    config, last = TASKS[task]
    scenes = task != 'classification'
    length = {'train_cfg__max_iters': 4, 'train_cfg__val_interval': 4, 'default_hooks__checkpoint__interval': 4}
    if task != 'segmentation':
        length = {'train_cfg__max_epochs': 2, 'train_cfg__val_interval': 2, 'default_hooks__checkpoint__interval': 2}
    given = {**length, 'default_hooks__logger__interval': 1, 'model__backbone__drop_path_rate': 0.1}
    if scenes:
        given['data_root'] = data / 'scenes'
        for loader in ('train', 'val', 'test'):
            given[f'{loader}_dataloader__dataset__scenes__train'] = 8
            given[f'{loader}_dataloader__dataset__scenes__val'] = 2
    else:
        given |= {
            'data_root': data / 'digits',
            'train_dataloader__dataset__indices': 128,
            'val_dataloader__dataset__indices': 16,
            'test_dataloader__dataset__indices': 16,
            'train_dataloader__batch_size': 32,
            'param_scheduler__warmup_epochs': 1,
        }

    def trained(name, seed):
        words = options(**given, randomness__seed=seed)
        run_tool(ROOT / 'tools/train.py', ROOT / 'configs' / config, '--work-dir', name, *words, cwd=tmp_path)
        return losses(tmp_path / name), weights(tmp_path / name / last)

    with ThreadPoolExecutor(2) as pool:
        (first, first_weights), (second, second_weights) = pool.map(trained, ('a', 'b'), (7, 7))
    other, other_weights = trained('c', 8)
    assert first == second
    assert same(first_weights, second_weights)
    assert first != other
    assert not same(first_weights, other_weights)
