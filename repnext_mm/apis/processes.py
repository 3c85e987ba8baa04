"""Fitting a config to the machine: launcher, and what torch lacks where there is no GPU."""

from __future__ import annotations

import os

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device

from repnext_mm.apis.config import replace_type

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
_SYNC_NORMS = {'SyncBN': 'BN', 'MMSyncBN': 'BN', 'mmcv.SyncBN': 'BN', 'NaiveSyncBN': 'BN'}
_RANKS = {  # (RANK, WORLD_SIZE, LOCAL_RANK) as each launcher names them
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


def set_launcher(config: Config, launcher: str) -> None:
    """Write the launcher into the config, once it is seen to have started this process.

    Raises:
        ValueError: the launcher is unknown, or has not set the variables it promises.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(f'launcher={launcher!r} is unknown: choose one of {LAUNCHERS}')
    missing = [name for name in _RANKS.get(launcher, ()) if name not in os.environ]
    if missing:
        raise ValueError(
            f'launcher={launcher!r} needs the environment variable {missing[0]}, which it did not set: start through '
            'tools/dist_train.sh, tools/slurm_train.sh or mpirun, or leave --launcher away'
        )
    config.launcher = launcher


def fit_to_machine(config: Config) -> list[str]:
    """Without a GPU, drop synchronised norms and join a gloo group; returns lines for the log."""
    if get_device() != 'cpu':
        return []
    notes = []
    if replace_type(config.model, _SYNC_NORMS) or config.get('sync_bn'):
        notes.append('No GPU here: batch norms are not synchronised over processes (torch has no SyncBN on CPU).')
    config.sync_bn = None
    if config.get('launcher', 'none') != 'none':
        _start_gloo(config.launcher)
        # mmengine passes a GPU's index, which torch refuses for a model on the CPU
        config.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    return notes


def _start_gloo(launcher: str) -> None:
    """Join the process group: mmengine calls torch.cuda.set_device first, which fails without a GPU."""
    if dist.is_initialized():
        return
    for name, source in zip(_RANKS['pytorch'], _RANKS[launcher], strict=True):
        os.environ[name] = os.environ[source]
    os.environ.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' not in os.environ:
        raise ValueError(f"launcher='{launcher}' on CPU needs MASTER_ADDR in the environment: the first node's name")
    dist.init_process_group('gloo')
