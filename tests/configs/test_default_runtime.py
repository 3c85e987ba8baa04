"""What is read is what runs: from our configs a stock Runner gets the hooks and the sampler that our tools use."""

from __future__ import annotations

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from repnext_mm.apis import prepare_training
from repnext_mm.apis.build import build_runner
from repnext_mm.apis.train import add_missing_hooks
from tests.configs import CONFIGS

NAMES = ['mask_rcnn_repnext_m0_digits', 'semantic_fpn_repnext_m0_digits', 'repnext_m0_digits_cls']
RELIABLE = ['AtomicCheckpointHook', 'ReturnMemoryHook', 'SeedStepsHook', 'StrictLoadHook']


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda path: path.stem)
def test_our_tools_add_nothing(path):
    """Also where the seed is fixed."""
    config = Config.fromfile(str(path))
    config.randomness = dict(seed=0)
    before = config.to_dict()
    assert add_missing_hooks(config) == []
    assert config.to_dict() == before
    assert {hook.type for hook in config.default_hooks.values()} >= set(RELIABLE)


@pytest.mark.filterwarnings('ignore:The draw is False')
@pytest.mark.parametrize('name', NAMES)
def test_a_stock_runner_has_the_same_hooks(name, tmp_path):
    config = Config.fromfile(str(CONFIGS / f'{name}.py'))
    config.work_dir, config.experiment_name = str(tmp_path / 'stock'), f'{name}-stock'
    config.visualizer.name = config.experiment_name
    stock = Runner.from_cfg(config)
    options = {'experiment_name': f'{name}-ours', 'visualizer.name': f'{name}-ours'}
    ours = build_runner(prepare_training(CONFIGS / f'{name}.py', work_dir=str(tmp_path / 'ours'), options=options))
    kinds = [type(hook).__name__ for hook in stock.hooks]
    assert kinds == [type(hook).__name__ for hook in ours.hooks]
    assert set(RELIABLE) <= set(kinds)
    assert config.train_dataloader.sampler.type == 'SeededSampler'


@pytest.mark.filterwarnings('ignore:The draw is False')
def test_any_default_hook_can_be_none(tmp_path):
    """mmengine's own too; for other names it stops at an assertion."""
    options = {f'default_hooks.{name}': None for name in ('timer', 'strict_load', 'memory', 'anything')}
    config = prepare_training(CONFIGS / f'{NAMES[2]}.py', work_dir=str(tmp_path), options=options)
    assert add_missing_hooks(config) == []
    kinds = {type(hook).__name__ for hook in build_runner(config).hooks}
    assert {'AtomicCheckpointHook', 'SeedStepsHook'} <= kinds
    assert not {'IterTimerHook', 'StrictLoadHook', 'ReturnMemoryHook'} & kinds
