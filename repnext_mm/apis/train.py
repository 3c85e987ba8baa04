"""Training from a config file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from repnext_mm.apis.build import build_runner, check_built
from repnext_mm.apis.checks import (
    check_checkpoint,
    check_class_counts,
    check_files,
    check_initial_weights,
    check_model,
    check_teacher,
    earlier_files,
)
from repnext_mm.apis.config import load_config
from repnext_mm.apis.launch import (
    MIXED_PRECISION_DEVICES,
    check_compile,
    check_precision,
    check_strategy,
    fit_to_machine,
    set_compile,
    set_launcher,
    set_memory_format,
)
from repnext_mm.apis.safe_loading import reading_safely
from repnext_mm.apis.trackers import add_trackers
from repnext_mm.errors import UserError
from repnext_mm.hooks.resume import USUAL, has_begun
from repnext_mm.models import type_name


def prepare_training(
    path: str | Path,
    *,
    work_dir: str | None = None,
    amp: bool = False,
    memory_format: str | None = None,
    compile: bool = False,
    auto_scale_lr: bool = False,
    trackers: Sequence[str] = (),
    resume: str | None = None,
    options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
) -> Config:
    """Read a training config, apply what the command line says, and check all that can be checked at once.

    ``amp`` is mixed precision: float16 with loss scaling on a GPU, bfloat16 on a CPU. ``memory_format`` is that of
    ``MemoryFormatHook``; None leaves it to the config. ``compile`` adds a ``CompileBackboneHook``. ``trackers`` are
    names of ``repnext_mm.apis.trackers.TRACKERS``. ``resume`` is None, 'auto' (the newest checkpoint of the working
    directory, if any) or a checkpoint's path.

    Raises:
        UserError: one sentence with the value, the rule and the way out.
    """
    config = load_config(path, options=options, work_dir=work_dir)
    for key in ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'):
        if not config.get(key):
            raise UserError(f"config '{path}' has no `{key}`: training needs it, inherit a complete config")
    set_launcher(config, launcher)
    if amp:
        _enable_amp(config)
    if memory_format is not None:
        set_memory_format(config, memory_format)
    if compile:
        set_compile(config)
    if auto_scale_lr:
        _enable_scaling(config, path)
    if trackers:
        add_trackers(config, trackers)
    if resume == 'auto':
        if _has_begun(config):  # else the weights to start from count
            config.resume, config.load_from = True, None
    elif resume is not None:
        config.resume, config.load_from = True, resume
    check_strategy(config)
    check_precision(config, stages=('train', 'val'))
    check_compile(config)
    check_model(config.model)
    if config.get('load_from'):
        check_checkpoint(config.load_from, given_as='--resume' if config.resume else 'load_from')
    check_initial_weights(config.model)
    check_teacher(config.model)
    check_files(config, stages=('train', 'val'))
    check_class_counts(config, stages=('train', 'val'))
    return config


def run_training(config: Config, *, trust_pickle: bool = False) -> Runner:
    """Train a prepared config; returns the Runner, whose model is the trained one.

    With ``trust_pickle``, checkpoints to start or go on from may hold any Python object, which can run any code.

    Raises:
        CheckpointNotSavedError: the disk is full, or the folder takes no file.
        NotBuiltError: a part of the config cannot be built, or what was built does not agree.
        WeightsError: a weight file cannot be read, does not fit, or holds no training to go on from.
        NoWholeCheckpointError: there was a checkpoint to go on from, and none is whole.
    """
    earlier = earlier_run(config)
    notes = [*fit_to_machine(config), *add_missing_hooks(config)]
    with reading_safely(trust_pickle=trust_pickle):  # some models read weights while they are built
        runner = build_runner(config)
        if earlier:
            runner.logger.warning(earlier)
        for note in notes:
            runner.logger.info(note)
        check_built(runner, config, stages=('train', 'val'))
        runner.train()
    return runner


_HOOKS = {  # of default_hooks in our configs: what each is called there, its type, and what it does
    'strict_load': ('StrictLoadHook', 'a checkpoint that does not fit is refused as a whole'),
    'memory': ('ReturnMemoryHook', 'freed memory goes back to the system'),
    'seeding': (
        'SeedStepsHook',
        'the seed is fixed: each step is seeded by its place, which a restart repeats',
    ),
}


def add_missing_hooks(config: Config) -> list[str]:
    """Give a config that does not inherit ours the hooks that ours name; returns a line for the log for each.

    An entry of ``default_hooks`` that is None stays None. ``AtomicCheckpointHook`` takes the place and the arguments of
    mmengine's ``CheckpointHook``, a subclass of somebody else's is left alone. Steps and samples are seeded where the
    config fixes a seed.
    """
    hooks = dict(config.get('default_hooks') or {})
    hooks.setdefault('checkpoint', dict(type='CheckpointHook'))  # mmengine's own, where a config names none
    known = [hook for hook in [*hooks.values(), *(config.get('custom_hooks') or ())] if isinstance(hook, dict)]
    notes = []
    for hook in known:
        if _is_stock(hook.get('type')):
            hook['type'] = 'AtomicCheckpointHook'
            notes.append('AtomicCheckpointHook saves in the place of CheckpointHook: a kill leaves a whole checkpoint.')
    seeded = (config.get('randomness') or {}).get('seed') is not None
    types = {type_name(hook.get('type')) for hook in known}
    for name, (kind, reason) in _HOOKS.items():
        if name not in hooks and kind not in types and (seeded or name != 'seeding'):
            hooks[name] = dict(type=kind)
            notes.append(f'{kind} is added as default_hooks.{name}: {reason}; set that to None to go without.')
    config.default_hooks = hooks
    if seeded and hooks.get('seeding', True):
        notes += _seed_samples(config)
    return notes


def _seed_samples(config: Config) -> list[str]:
    loader = config.get('train_dataloader')
    sampler = loader.get('sampler') if isinstance(loader, dict) else None
    if not isinstance(sampler, dict) or type_name(sampler.get('type')) == 'SeededSampler':
        return []
    config.train_dataloader.sampler = dict(type='SeededSampler', sampler=sampler)
    return ['SeededSampler is put around train_dataloader.sampler: each sample is seeded by its place.']


def _is_stock(kind: Any) -> bool:
    """Whether this is mmengine's own hook, not somebody's of the same name."""
    made = HOOKS.get(kind) if isinstance(kind, str) and type_name(kind) == 'CheckpointHook' else kind
    return made is CheckpointHook


_MIXED_PRECISION = {  # on a GPU, on a CPU
    'OptimWrapper': ('AmpOptimWrapper', 'Bfloat16OptimWrapper'),
    'AdaptiveClipOptimWrapper': ('AdaptiveClipAmpOptimWrapper', 'AdaptiveClipBfloat16OptimWrapper'),
}


def _has_begun(config: Config) -> bool:
    """Whether there may be a checkpoint to go on from, as far as the working directory tells."""
    hook = (config.get('default_hooks') or {}).get('checkpoint') or {}
    folder = Path(config.work_dir)
    template = hook.get('filename_tmpl') or USUAL[0]
    return hook.get('out_dir') is not None or has_begun(work_dir=folder, folder=folder, template=template)


def earlier_run(config: Config) -> str:
    """What a run that starts from scratch does to the checkpoints of another one in its folder."""
    names = '' if config.get('resume') else earlier_files(config.work_dir, '*.pth')
    return names and (
        f'{config.work_dir} holds {names} of an earlier run: checkpoints of the same names will be replaced; --resume '
        'goes on with that run, --work-dir names another folder'
    )


def _enable_amp(config: Config) -> None:
    wrapper, device = config.optim_wrapper, get_device()
    kind = type_name(wrapper.get('type', 'OptimWrapper'))
    plain = next((name for name, mixed in _MIXED_PRECISION.items() if kind in (name, *mixed)), None)
    if plain is None:
        raise UserError(
            f"--amp cannot replace optim_wrapper.type='{kind}': it knows {' and '.join(_MIXED_PRECISION)} only; write "
            'a mixed-precision wrapper into the config'
        )
    on_gpu, on_cpu = _MIXED_PRECISION[plain]
    if device in MIXED_PRECISION_DEVICES:
        if kind != on_cpu:  # which a GPU has too
            wrapper.type = on_gpu
            wrapper.setdefault('loss_scale', 'dynamic')
        return
    if device != 'cpu':
        raise UserError(f'--amp needs a GPU or a CPU, and this is {device}: omit it')
    dtype = str(wrapper.get('dtype') or 'bfloat16').removeprefix('torch.')
    if dtype != 'bfloat16':
        raise UserError(
            f"--amp with optim_wrapper.dtype='{dtype}' needs a GPU, and none was found: omit dtype, a CPU has "
            'bfloat16 only'
        )
    wrapper.type = on_cpu
    for name in ('loss_scale', 'dtype', 'use_fsdp'):  # of mmengine's AmpOptimWrapper
        wrapper.pop(name, None)


def _enable_scaling(config: Config, path: str | Path) -> None:
    if not (config.get('auto_scale_lr') or {}).get('base_batch_size'):
        raise UserError(
            f"--auto-scale-lr: config '{path}' has no auto_scale_lr.base_batch_size: add "
            'auto_scale_lr = dict(base_batch_size=N), N the batch over all GPUs that the rate was chosen for'
        )
    config.auto_scale_lr.enable = True
