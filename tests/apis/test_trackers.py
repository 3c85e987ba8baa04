"""A training reports to the trackers that the command line names, beside what it writes itself."""

from __future__ import annotations

import importlib.util

import pytest
from mmengine.config import Config
from mmengine.registry import VISBACKENDS

from repnext_mm.apis import trackers
from repnext_mm.apis.train import prepare_training, run_training
from tests.configs import CONFIGS
from tests.layouts import write_coco


@pytest.fixture
def everything_installed(monkeypatch):
    monkeypatch.setattr(trackers, 'find_spec', lambda name: name)


def test_every_name_is_a_back_end_of_mmengine():
    assert all(VISBACKENDS.get(kind) is not None for kind in trackers.TRACKERS.values())


@pytest.mark.parametrize('name', trackers.TRACKERS)
@pytest.mark.parametrize('config', ['mask_rcnn', 'semantic_fpn', 'repnext'])
def test_it_is_added_once_and_images_are_drawn(name, config, everything_installed):
    (path,) = (
        CONFIGS.glob(f'{config}_*m0_digits*.py') if config != 'repnext' else [CONFIGS / 'repnext_m0_digits_cls.py']
    )
    config = Config.fromfile(str(path))
    for _ in range(2):
        trackers.add_trackers(config, [name])
        kinds = [backend.type for backend in config.visualizer.vis_backends]
        assert kinds == ['LocalVisBackend', trackers.TRACKERS[name]]
    hook = config.default_hooks.visualization
    assert hook.get('draw', hook.get('enable')) is True


def test_settings_of_the_config_stay(everything_installed):
    own = dict(type='WandbVisBackend', init_kwargs=dict(project='digits'))
    config = Config(dict(visualizer=dict(type='DetLocalVisualizer', name='mine', vis_backends=[own])))
    trackers.add_trackers(config, ['wandb', 'aim'])
    assert config.visualizer.name == 'mine'
    assert config.visualizer.vis_backends == [own, dict(type='AimVisBackend')]


def test_mlflow_writes_a_data_base_or_where_it_is_told_to(everything_installed, monkeypatch, tmp_path):
    """MLflow 3 refuses mmengine's default, a folder of files."""

    def back_end():
        config = Config(dict(work_dir=str(tmp_path)))
        trackers.add_trackers(config, ['mlflow'])
        return config.visualizer.vis_backends[1]

    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    assert back_end().tracking_uri == f'sqlite:///{tmp_path}/mlflow.db'
    assert (back_end().exp_name, back_end().artifact_location) == ('repnext_mm', f'file://{tmp_path}/mlruns')
    monkeypatch.setenv('MLFLOW_TRACKING_URI', 'http://tracking:5000')
    assert back_end() == dict(type='MLflowVisBackend', tracking_uri='http://tracking:5000')


def test_a_config_without_a_visualizer_gets_one(everything_installed):
    config = Config({})
    trackers.add_trackers(config, ['tensorboard'])
    assert config.visualizer.type == 'Visualizer'
    assert [backend.type for backend in config.visualizer.vis_backends] == ['LocalVisBackend', 'TensorboardVisBackend']


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setattr(trackers, 'find_spec', lambda _: None)
    with pytest.raises(ValueError, match='--tracker wandb needs a package that is not installed: pip install wandb'):
        prepare_training(CONFIGS / 'repnext_m0_digits_cls.py', trackers=['wandb'])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('tensorboard') is None, reason='tensorboard is not installed')
def test_tensorboard_gets_losses_and_images(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_coco(tmp_path / 'coco')
    small = {f'{loader}_dataloader.dataset.pipeline.{at}.scale': (96, 96) for loader, at in (('train', 2), ('val', 1))}
    options = {
        'data_root': str(tmp_path / 'coco'),
        'train_cfg.max_epochs': 1,
        'default_hooks.visualization.interval': 1,
        'default_hooks.logger.interval': 1,
        'model.backbone.arch': 'm0',
        'model.backbone.init_cfg': None,
        'model.test_cfg.rcnn.score_thr': 0.0,  # else so short a training finds nothing
        'model.neck.in_channels': [40, 80, 160, 320],
        **small,
    }
    config = prepare_training(
        CONFIGS / 'mask_rcnn_repnext_m3_coco.py', work_dir=str(tmp_path), trackers=['tensorboard'], options=options
    )
    run_training(config)
    (file,) = tmp_path.glob('*/vis_data/events.out.*')
    events = EventAccumulator(str(file))
    events.Reload()
    assert {'loss', 'lr', 'coco/bbox_mAP'} <= set(events.Tags()['scalars'])
    assert events.Tags()['images']
