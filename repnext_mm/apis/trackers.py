"""Trackers that a training reports to: mmengine's own back ends, put into a config by name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
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
    ``init_kwargs``; one that is there is not added again. Images are drawn every ``interval`` batches of the config's
    visualization hook.

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
            backends.append(dict(type=TRACKERS[name]))
    config.visualizer = {**visualizer, 'vis_backends': backends}
    hook: Any = (config.get('default_hooks') or {}).get('visualization')
    switch = _DRAWS.get(type_name(hook.get('type'))) if isinstance(hook, dict) else None
    if switch is not None:
        hook[switch] = True
