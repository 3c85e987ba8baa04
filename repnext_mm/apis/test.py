"""Testing a checkpoint from a config file."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from math import floor
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.hooks import LoggerHook
from mmengine.logging import print_log
from mmengine.runner import Runner

from repnext_mm.apis.build import build_runner, check_built
from repnext_mm.apis.checks import check_checkpoint, check_class_counts, check_files, check_model, earlier_files
from repnext_mm.apis.config import drop_initial_weights, innermost_datasets, load_config, without_teacher
from repnext_mm.apis.launch import check_precision, fit_to_machine, set_launcher, set_memory_format
from repnext_mm.apis.safe_loading import reading_safely
from repnext_mm.errors import UserError
from repnext_mm.models import type_name
from repnext_mm.models.box_tta import predicts_masks

_DUMPERS = {'mmdet': 'DumpDetResults'}  # encodes masks; the others dump as they are


def prepare_test(
    path: str | Path,
    checkpoint: str,
    *,
    work_dir: str | None = None,
    out: str | None = None,
    show_dir: str | None = None,
    tta: bool = False,
    fuse: bool = True,
    ema: bool = False,
    img_size: int | None = None,
    crop_pct: float | None = None,
    memory_format: str | None = None,
    options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
) -> Config:
    """Read a test config, apply what the command line says, and check all that can be checked at once.

    ``out`` is a .pkl file for the predictions, ``show_dir`` a folder for annotated images. ``fuse=False`` takes
    FuseBackboneHook out of the config; nothing puts it into a config that lacks it. ``ema`` takes the averaged weights
    of the checkpoint. Fused weights are tested in deploy form, whatever form the config builds. ``img_size`` (pixels)
    and ``crop_pct`` (in (0, 1]) are timm's: the short edge is resized to ``img_size / crop_pct``, and the middle is cut
    out; of the two, the one not given stays as the config has it. ``memory_format`` is that of ``MemoryFormatHook``;
    None leaves it to the config.

    Raises:
        UserError: one sentence with the value, the rule and the way out.
    """
    config = load_config(path, options=options, work_dir=work_dir)
    for key in ('model', 'test_dataloader', 'test_evaluator', 'test_cfg'):
        if config.get(key) is None:
            raise UserError(f"config '{path}' has no `{key}`: testing needs it, inherit a complete config")
    config.model = without_teacher(config.model)
    set_launcher(config, launcher)
    if config.get('runner_type') == 'FlexibleRunner':
        config.pop('runner_type')  # a test shards nothing, and fusing needs whole weights
    check_precision(config, stages=('test',))
    check_model(config.model)
    check_checkpoint(checkpoint, given_as='checkpoint')
    config.load_from, config.resume = checkpoint, False
    require_strict_load(config, ema=ema)
    drop_initial_weights(config.model)
    if not fuse:
        config.custom_hooks = [hook for hook in config.get('custom_hooks') or [] if not _is_fuse_hook(hook)]
    if memory_format is not None:
        set_memory_format(config, memory_format)
    if img_size is not None or crop_pct is not None:
        _crop(config, img_size, crop_pct)
    if tta:
        _enable_tta(config, path)
    check_files(config, stages=('test',))
    check_class_counts(config, stages=('test',))
    if show_dir is not None:
        _enable_drawing(config, show_dir)
        names = earlier_files(show_dir)
        if names:
            warn(f'--show-dir {show_dir} holds {names} already: images of the same names will be replaced')
    if out is not None:
        _enable_dump(config, out)
        if os.path.exists(out):
            warn(f'--out {out} is there already: it will be replaced')
    return config


def run_test(config: Config, *, trust_pickle: bool = False) -> dict[str, float]:
    """Test a prepared config; returns its metrics. For ``trust_pickle``, see ``run_training``.

    Raises:
        NotBuiltError: a part of the config cannot be built, or what was built does not agree.
        WeightsError: the checkpoint cannot be read, or does not fit.
    """
    notes = fit_to_machine(config)
    with reading_safely(trust_pickle=trust_pickle):  # some models read weights while they are built
        runner: Runner = build_runner(config)
        for note in notes:
            runner.logger.info(note)
        log_once(runner)
        check_built(runner, config, stages=('test',))
        return runner.test()


def warn(text: str) -> None:
    """Write a warning to the log of the run."""
    print_log(text, logger='current', level=logging.WARNING)


def log_once(runner: Runner) -> None:
    """Leave mmengine's LoggerHook to the first process: after a test, all would write one file of metrics at once."""
    if not is_main_process():
        runner.hooks[:] = [hook for hook in runner.hooks if not isinstance(hook, LoggerHook)]


def require_strict_load(config: Config, *, ema: bool) -> None:
    """Tell StrictLoadHook, which a config that does not inherit ours lacks, what is tested."""
    hooks = dict(config.get('default_hooks') or {})
    known = [*hooks.values(), *(config.get('custom_hooks') or ())]
    strict = next((h for h in known if isinstance(h, dict) and type_name(h.get('type')) == 'StrictLoadHook'), None)
    if strict is None:
        hooks['strict_load'] = strict = dict(type='StrictLoadHook')
        warn('The config has no StrictLoadHook: it is added, so that a checkpoint that does not fit is refused.')
    strict['testing'] = True
    if ema:
        strict['ema'] = True
    config.default_hooks = hooks


def _is_fuse_hook(hook: Any) -> bool:
    return isinstance(hook, dict) and type_name(hook.get('type')) == 'FuseBackboneHook'


def _crop(config: Config, img_size: int | None, crop_pct: float | None) -> None:
    """Write another size into each pair of ``ResizeEdge`` and ``CenterCrop`` of the test pipelines."""
    if img_size is not None and img_size < 32:
        raise UserError(f'--img-size {img_size} is too small: RepNeXt takes at least 32 pixels')
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise UserError(f'--crop-pct {crop_pct} is not a share of the short edge: give more than 0, at most 1')
    for dataset in innermost_datasets(config.test_dataloader['dataset']):
        steps = {type_name(step['type']): step for step in dataset.get('pipeline') or ()}
        resize, crop = steps.get('ResizeEdge') or {}, steps.get('CenterCrop') or {}
        edge, size = resize.get('scale'), crop.get('crop_size')
        if not isinstance(edge, int) or not isinstance(size, int):
            raise UserError(
                '--img-size and --crop-pct change the ResizeEdge and CenterCrop of a classification pipeline, with a '
                f'number each, and this one has {", ".join(steps) or "no steps"}: set its steps with --cfg-options'
            )
        share = size / edge if crop_pct is None else crop_pct
        crop['crop_size'] = size if img_size is None else img_size
        resize['scale'] = floor(crop['crop_size'] / share)


def _enable_tta(config: Config, path: str | Path) -> None:
    missing = [key for key in ('tta_model', 'tta_pipeline') if not config.get(key)]
    if missing:
        raise UserError(
            f"--tta: config '{path}' has no {' and no '.join(missing)}: add them as in configs/_base_/, or test "
            'without --tta'
        )
    kind = type_name(config.tta_model['type'])
    if predicts_masks(config.model):
        if kind != 'BoxTTAModel':
            raise UserError(
                f"--tta: tta_model.type='{kind}' cannot merge the masks of '{type_name(config.model['type'])}': set "
                "tta_model.type='BoxTTAModel', which merges and evaluates boxes only, or test without --tta"
            )
        for evaluator in _evaluators(config):
            if 'segm' in (evaluator.get('metric') or []):
                evaluator['metric'] = ['bbox']
    config.model = ConfigDict(**config.tta_model, module=config.model)
    for dataset in innermost_datasets(config.test_dataloader['dataset']):
        dataset['pipeline'] = config.tta_pipeline


def _enable_drawing(config: Config, show_dir: str) -> None:
    hook = (config.get('default_hooks') or {}).get('visualization')
    if not hook:
        raise UserError(
            "--show-dir needs default_hooks.visualization: add visualization=dict(type='DetVisualizationHook'), "
            "'SegVisualizationHook' or 'VisualizationHook' to the config's default_hooks"
        )
    folder = os.path.abspath(show_dir)  # relative ones would land in the run's own folder
    kind = type_name(hook.get('type'))
    if kind == 'DetVisualizationHook':
        hook.update(draw=True, test_out_dir=folder)
    elif kind == 'SegVisualizationHook':  # draws through the visualizer, which owns the folder
        hook.update(draw=True, interval=1)  # mmsegmentation 1.2 draws every 50th image otherwise
        if not config.get('visualizer'):
            raise UserError("--show-dir needs `visualizer`: add visualizer=dict(type='SegLocalVisualizer') to it")
        config.visualizer['save_dir'] = folder
    elif kind == 'VisualizationHook':
        hook.update(enable=True, interval=1, out_dir=folder)  # it draws every 5000th image otherwise
    else:
        raise UserError(
            f"--show-dir does not know default_hooks.visualization.type='{kind}': set that hook's own options with "
            '--cfg-options'
        )


def _enable_dump(config: Config, out: str) -> None:
    if not out.endswith(('.pkl', '.pickle')):
        raise UserError(f"--out '{out}' is not a pickle file's name: let it end in .pkl")
    dumper = ConfigDict(type=_DUMPERS.get(config.get('default_scope'), 'DumpResults'), out_file_path=out)
    config.test_evaluator = [*_evaluators(config), dumper]


def _evaluators(config: Config) -> list[Any]:
    found = config.test_evaluator
    return list(found) if isinstance(found, list | tuple) else [found]
