"""Trackers that a training reports to: mmengine's own back ends, put into a config by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config

from repnext_mm.errors import MissingPackageError
from repnext_mm.models import type_name

TRACKERS = {  # name, which is also that of the package to import and to install: mmengine's back end
    'aim': 'AimVisBackend',
    'clearml': 'ClearMLVisBackend',
    'dvclive': 'DVCLiveVisBackend',
    'mlflow': 'MLflowVisBackend',
    'neptune': 'NeptuneVisBackend',
    'tensorboard': 'TensorboardVisBackend',
    'wandb': 'WandbVisBackend',
}
_DRAWS = {  # hooks that draw validation images, and what switches them on
    'DetVisualizationHook': 'draw',
    'SegVisualizationHook': 'draw',
    'VisualizationHook': 'enable',
}


def add_trackers(config: Config, names: Sequence[str]) -> None:
    """Send what a run logs, and some of its validation images with what was found on them, to trackers too.

    Options of a tracker (a project, an address) go into the config: ``visualizer.vis_backends`` with the back end's
    ``init_kwargs``; one that is there is not added again. MLflow writes ``mlflow.db`` in the working directory unless
    ``MLFLOW_TRACKING_URI`` is set, and DVCLive writes nothing to git. Images are drawn every ``interval`` batches
    of the config's visualization hook.

    Args:
        config: changed in place.
        names: of ``TRACKERS``.

    Raises:
        MissingPackageError: the package of one is not installed.
    """
    visualizer = dict(config.get('visualizer') or dict(type='Visualizer', name='visualizer'))
    backends = list(visualizer.get('vis_backends') or [dict(type='LocalVisBackend')])
    for name in names:
        if find_spec(name) is None:
            raise MissingPackageError(f'--tracker {name} needs a package that is not installed: pip install {name}')
        if TRACKERS[name] not in [type_name(backend.get('type')) for backend in backends]:
            backends.append(dict(type=TRACKERS[name], **_defaults(name, config.get('work_dir') or '.')))
    config.visualizer = {**visualizer, 'vis_backends': backends}
    hook: Any = (config.get('default_hooks') or {}).get('visualization')
    switch = _DRAWS.get(type_name(hook.get('type'))) if isinstance(hook, dict) else None
    if switch is not None:
        hook[switch] = True


def _defaults(name: str, work_dir: str) -> dict[str, Any]:
    """Where mmengine's own would stop a run."""
    folder = Path(work_dir).absolute()
    if name == 'mlflow':  # which no longer writes a folder of files, mmengine's default
        store = os.environ.get('MLFLOW_TRACKING_URI')
        if store:
            return dict(tracking_uri=store)
        return dict(  # of the experiment that is there already, MLflow has chosen the location: the current folder
            tracking_uri=f'sqlite:///{folder / "mlflow.db"}',
            exp_name='repnext_mm',
            artifact_location=(folder / 'mlruns').as_uri(),
        )
    if name == 'dvclive':  # which ends by a commit, and fails without a git identity, and writes into the repository
        return dict(init_kwargs=dict(save_dvc_exp=False, dvcyaml=None))
    return {}
