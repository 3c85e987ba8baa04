"""Fitting a config to the machine: launcher, strategy, and what torch lacks where there is no GPU."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Mapping
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

from repnext_mm.apis.config import replace_type
from repnext_mm.errors import UserError
from repnext_mm.hooks.compile_backbone import check_compiler
from repnext_mm.models import type_name

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
_SYNC_NORMS = dict.fromkeys(('SyncBN', 'SyncBatchNorm', 'MMSyncBN', 'NaiveSyncBN'), 'BN')
MIXED_PRECISION_DEVICES = ('cuda', 'npu', 'mlu', 'musa')  # of mmengine's AmpOptimWrapper
_GPU_ONLY = ('AmpOptimWrapper', 'AdaptiveClipAmpOptimWrapper')  # each has a twin for bfloat16
_RANKS = {  # (RANK, WORLD_SIZE, LOCAL_RANK) as each launcher names them
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}
_WHOLE_ON_CPU = dict(  # 'full' also moves tensors to the CPU: torch 2.11 crashes where they are there already
    state_dict_type='FULL_STATE_DICT',
    state_dict_config=dict(type='FullStateDictConfig', rank0_only=True),
    optim_state_dict_config=dict(type='FullOptimStateDictConfig', rank0_only=True),
)


def set_launcher(config: Config, launcher: str) -> None:
    """Write the launcher into the config, if it started this process.

    Raises:
        UserError: the launcher is unknown, or has not set the variables it promises; or nobody says where to meet.
    """
    if launcher not in LAUNCHERS:
        raise UserError(f'launcher={launcher!r} is unknown: choose one of {LAUNCHERS}')
    missing = [name for name in _RANKS.get(launcher, ()) if name not in os.environ]
    if missing:
        raise UserError(
            f'launcher={launcher!r} needs the environment variable {missing[0]}, which it did not set: start through '
            'tools/dist_train.sh, tools/slurm_train.sh or mpirun, or omit --launcher'
        )
    if launcher != 'none' and 'MASTER_ADDR' not in os.environ and (launcher != 'slurm' or get_device() == 'cpu'):
        raise UserError(
            f"launcher={launcher!r} needs MASTER_ADDR in the environment: the first machine's name or address"
        )
    config.launcher = launcher


def set_memory_format(config: Config, memory_format: str) -> None:
    """Write a memory format into the MemoryFormatHook of a config, which is added where there is none."""
    _hook(config, 'memory_format', 'MemoryFormatHook')['memory_format'] = memory_format


def set_compile(config: Config) -> None:
    """Give a config a CompileBackboneHook, unless it has one."""
    _hook(config, 'compile', 'CompileBackboneHook')


def check_compile(config: Config) -> None:
    """What a config's CompileBackboneHook needs is on this machine.

    Raises:
        UserError: no compiler is.
    """
    if any(type_name(hook.get('type')) == 'CompileBackboneHook' for hook in _hooks(config)):
        check_compiler(get_device())


def check_strategy(config: Config) -> None:
    """The strategy of a FlexibleRunner can do what is asked of it.

    Raises:
        UserError: shards are to be clipped, or to read a checkpoint, or torch has none on this machine.
    """
    if _strategy(config) != 'FSDPStrategy':
        return
    reason = ''
    if config.get('resume') or config.get('load_from'):
        reason = 'cannot read a checkpoint (load_from, --resume)'
    elif _clips(config.get('optim_wrapper') or {}):
        reason = 'would clip the gradients of each shard by itself (optim_wrapper.clip_grad)'
    elif get_device() == 'cpu' and not hasattr(torch.cpu, 'current_device'):
        reason = f'needs a GPU with torch {torch.__version__}'
    if reason:
        raise UserError(
            f"strategy.type='FSDPStrategy' {reason}: set strategy.type='DDPStrategy', networks of this size need no "
            'shards'
        )


def check_precision(config: Config, *, stages: tuple[str, ...]) -> None:
    """Half precision is asked for only where it can be had: on a CPU, from ``Bfloat16OptimWrapper`` alone.

    Raises:
        UserError: the loop of one of ``stages``, or an optimizer's wrapper, asks for it here.
    """
    device = get_device()
    if device in MIXED_PRECISION_DEVICES:
        return
    for stage in stages:
        if (config.get(f'{stage}_cfg') or {}).get('fp16'):
            raise UserError(f'{stage}_cfg.fp16=True needs a GPU, and none was found ({device}): omit it')
    for key, wrapper in _wrappers('optim_wrapper', config.get('optim_wrapper')) if 'train' in stages else ():
        kind = wrapper['type']
        made = OPTIM_WRAPPERS.get(kind) if isinstance(kind, str) else kind
        if isinstance(made, type) and issubclass(made, AmpOptimWrapper):
            name = type_name(kind)
            other = name.replace('Amp', 'Bfloat16') if device == 'cpu' and name in _GPU_ONLY else 'OptimWrapper'
            raise UserError(
                f"{key}.type='{name}' trains in mixed precision with float16, which needs a GPU, and none was "
                f"found ({device}): set {key}.type='{other}' and omit its loss_scale and dtype"
            )


def fit_to_machine(config: Config) -> list[str]:
    """Without a GPU, drop synchronized norms and join a gloo group; evaluate fast; returns lines for the log.

    A FlexibleRunner reads some keys from its strategy that a Runner reads from the top of the config: they are copied.
    """
    notes = []
    on_cpu, distributed = get_device() == 'cpu', config.get('launcher', 'none') != 'none'
    if on_cpu:
        if replace_type(config.model, _SYNC_NORMS) or config.get('sync_bn'):
            notes.append('No GPU here: batch norms are not synchronized over processes (torch has no SyncBN on CPU).')
        config.sync_bn = None
        if distributed:
            notes.append('No GPU here: processes exchange gradients through gloo.')
            start_gloo(config)
            # mmengine passes a GPU's index, which torch refuses for a model on the CPU
            config.model_wrapper_cfg = {**_wrapper(config), 'device_ids': None}
    if config.get('runner_type') == 'FlexibleRunner':
        notes += _fit_strategy(config, distributed=distributed)
    return notes + _fit_evaluators(config)


def _fit_evaluators(config: Config) -> list[str]:
    """Take faster-coco-eval for COCO's metrics where it is installed."""
    notes = []
    for key in ('val_evaluator', 'test_evaluator') if find_spec('faster_coco_eval') is not None else ():
        found = config.get(key)
        for evaluator in found if isinstance(found, list | tuple) else [found]:
            if isinstance(evaluator, dict) and type_name(evaluator.get('type')) == 'CocoMetric':
                evaluator['type'] = 'FastCocoMetric'
                notes.append(f'{key}: faster-coco-eval is installed and evaluates, with the numbers of pycocotools.')
    return notes


def _hooks(config: Config) -> list[dict[str, Any]]:
    known = (*(config.get('default_hooks') or {}).values(), *(config.get('custom_hooks') or ()))
    return [hook for hook in known if isinstance(hook, dict)]


def _hook(config: Config, name: str, kind: str) -> dict[str, Any]:
    """A config's hook of this type, which becomes ``default_hooks.name`` where there is none."""
    for hook in _hooks(config):
        if type_name(hook.get('type')) == kind:
            return hook
    config.default_hooks = {**(config.get('default_hooks') or {}), name: dict(type=kind)}
    made: dict[str, Any] = config.default_hooks[name]
    return made


def _wrappers(key: str, part: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """The optimizer's wrapper, or the several of a model with several optimizers, under their keys."""
    if not isinstance(part, Mapping):
        return []
    inner = [found for name, value in part.items() for found in _wrappers(f'{key}.{name}', value)]
    return [(key, part), *inner] if 'type' in part else inner


def _wrapper(config: Config) -> dict[str, Any]:
    """What a Runner wraps the model into."""
    default = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=config.get('find_unused_parameters', False),
    )
    return {**default, **(config.get('model_wrapper_cfg') or {})}


def _strategy(config: Config) -> str:
    if config.get('runner_type') != 'FlexibleRunner':
        return ''
    return type_name((config.get('strategy') or {}).get('type', ''))


def _clips(optim_wrapper: Mapping[str, Any]) -> bool:
    kind = type_name(optim_wrapper.get('type'))
    return bool(optim_wrapper.get('clip_grad')) or kind.startswith('AdaptiveClip')


def _fit_strategy(config: Config, *, distributed: bool) -> list[str]:
    kind = _strategy(config)
    if not distributed:
        if kind not in ('DDPStrategy', 'FSDPStrategy'):
            return []
        config.strategy = None
        return [f'One process: it trains on its own device, without {kind}.']
    config.strategy = {'type': 'DDPStrategy', **(config.get('strategy') or {})}
    strategy = config.strategy  # mmengine's copy of it
    if kind in ('', 'DDPStrategy'):
        strategy.setdefault('sync_bn', config.get('sync_bn'))
        strategy.setdefault('model_wrapper', _wrapper(config))
    elif kind == 'FSDPStrategy':
        # whole checkpoints: the other kind is a folder that nothing else reads
        strategy.setdefault('state_dict_cfg', _WHOLE_ON_CPU if get_device() == 'cpu' else 'full')
        if get_device() == 'cpu':
            own = strategy.get('model_wrapper') or {}
            strategy.model_wrapper = {'type': 'MMFullyShardedDataParallel', 'device_id': 'cpu', **own}
        elif config.get('sync_bn'):
            return ["strategy.type='FSDPStrategy' does not synchronize batch norms: sync_bn is not used."]
    return []


def start_gloo(config: Config) -> None:
    """Join the process group: mmengine calls torch.cuda.set_device first, which fails without a GPU."""
    if dist.is_initialized():
        return
    for name, source in zip(_RANKS['pytorch'], _RANKS[config.launcher], strict=True):
        os.environ[name] = os.environ[source]
    os.environ.setdefault('MASTER_PORT', '29500')
    seconds = ((config.get('env_cfg') or {}).get('dist_cfg') or {}).get('timeout')
    # torch 2.1 takes no timeout=None
    timeout: dict[str, Any] = {} if seconds is None else {'timeout': timedelta(seconds=seconds)}
    dist.init_process_group('gloo', **timeout)
    atexit.register(_leave_group)


def _leave_group() -> None:
    """End gloo's threads while Python lives: one that drops its last tensor later aborts a process that was done.

    They end with the last reference to the group, which a wrapped model holds, and a runner's cycles hold that.
    """
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()
