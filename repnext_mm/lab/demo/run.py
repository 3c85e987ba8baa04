"""From nothing to a table and a sheet of images: data, training, tests in train form and fused."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATASETS, init_default_scope

from repnext_mm.apis import prepare_test, prepare_training, run_test, run_training
from repnext_mm.apis.build import build_model
from repnext_mm.lab.draw.predictions import draw_sheet
from repnext_mm.lab.table import markdown_table
from repnext_mm.reparam import fuse_checked
from repnext_mm.timing import measure_latency

TOLERANCE = 0.001  # of AP or IoU in 0..1: fusing must not change what the network says
NEVER = 10**9  # in epochs or iterations: both tests follow, on the same images
SHEET_SCENES = 6
SHEET_DIGITS = 48
_SCORES = {  # name in the table: key of the evaluator, factor to 0..1
    'mmdet': {'box AP': ('coco/bbox_mAP', 1.0), 'mask AP': ('coco/segm_mAP', 1.0)},
    'mmseg': {'mIoU of the ten digits': ('mIoU', 0.01)},
    'mmpretrain': {'top-1 accuracy': ('accuracy/top1', 0.01)},
}
_LATENCY_SIZE = {'mmdet': 256, 'mmseg': 256, 'mmpretrain': 32}  # pixels


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """What the demo measured: each row holds the value in train form and the value fused."""

    rows: dict[str, tuple[float, float]]
    input_shape: tuple[int, ...]  # (N, C, H, W) of the latency measurement
    device: str
    threads: int
    train_minutes: float
    checkpoint: str
    table: str
    sheet: str


def run_demo(
    config_path: str | Path, *, work_dir: str | Path, quick: bool = False, fresh: bool = False, amp: bool = False
) -> DemoReport:
    """Train the config unless that was done already, test the checkpoint in both forms, and save a table and a sheet.

    ``quick`` takes a handful of scenes and two iterations: it shows that everything runs, not that it learns.
    ``fresh`` trains again although a finished training of the same config is there, ``amp`` in mixed precision.

    Raises:
        RuntimeError: the scores of the two forms differ by more than ``TOLERANCE``.
    """
    work_dir = Path(work_dir)
    options = {'randomness': {'seed': 0}, **(quick_options(config_path) if quick else {})}
    settings = {**options, 'train_cfg.val_interval': NEVER}
    checkpoint, minutes = trained(config_path, work_dir, settings, fresh=fresh, amp=amp)
    scores = [
        run_test(
            prepare_test(
                config_path, str(checkpoint), work_dir=str(work_dir / f'test_{name}'), fuse=fuse, options=options
            )
        )
        for name, fuse in (('train_form', False), ('fused', True))
    ]
    config = prepare_test(config_path, str(checkpoint), work_dir=str(work_dir), options=options)
    init_default_scope(config.default_scope)
    rows = {
        name: (float(scores[0][key]) * factor, float(scores[1][key]) * factor)
        for name, (key, factor) in _SCORES[config.default_scope].items()
    }
    model, shape, backbone_rows = _compare_backbones(config, checkpoint, rounds=3 if quick else 50)
    dataset = DATASETS.build(config.test_dataloader.dataset)
    sheet = work_dir / 'sheet.png'
    title = f'{Path(config_path).stem}, fused: ' + ', '.join(
        f'{name} {format_score(values[1])}' for name, values in rows.items()
    )
    kind, count = ('digits', SHEET_DIGITS) if config.default_scope == 'mmpretrain' else ('scenes', SHEET_SCENES)
    draw_sheet(model, dataset, sheet, count=count, title=f'{title} ({len(dataset)} held-out {kind})')
    report = DemoReport(
        rows={**rows, **backbone_rows},
        input_shape=shape,
        device=get_device(),
        threads=torch.get_num_threads(),
        train_minutes=minutes,
        checkpoint=str(checkpoint),
        table=str(work_dir / 'table.json'),
        sheet=str(sheet),
    )
    Path(report.table).write_text(json.dumps(asdict(report), indent=2) + '\n')
    check_scores(rows)
    return report


def format_table(rows: Mapping[str, tuple[float, float]]) -> str:
    """A Markdown table: one row per quantity, its value before and after fusing."""
    return markdown_table(['', 'train form', 'fused'], [[name, *map(_text, values)] for name, values in rows.items()])


def format_score(value: float) -> str:
    """AP or IoU in 0..1, to the digits that fusing may not change."""
    return f'{value:.3f}'


def check_scores(rows: Mapping[str, tuple[float, float]]) -> None:
    """Raise a ``RuntimeError`` unless the scores of both forms are the same up to ``TOLERANCE``."""
    for name, (before, after) in rows.items():
        if not abs(before - after) <= TOLERANCE:  # NaN is a difference too
            raise RuntimeError(
                f'{name} is {before:.4f} in train form but {after:.4f} fused: they may differ by {TOLERANCE} at most, '
                'so the fusing is wrong for this checkpoint; please report it with the logs'
            )


def quick_options(config_path: str | Path) -> dict[str, Any]:
    """Overrides that leave a handful of images and iterations."""
    config = Config.fromfile(str(config_path))
    if config.default_scope == 'mmpretrain':
        few = {f'{loader}_dataloader.dataset.indices': 128 for loader in ('train', 'val', 'test')}
        once = {'train_cfg.max_epochs': 1, 'default_hooks.checkpoint.interval': 1}
        return {**few, **once}
    options: dict[str, Any] = {'data_root': 'data/digit_scenes_quick'}
    for loader in ('train', 'val', 'test'):
        options[f'{loader}_dataloader.dataset.scenes'] = {'train': 16, 'val': SHEET_SCENES}
    if config.train_cfg.type == 'IterBasedTrainLoop':
        options |= {'train_cfg.max_iters': 2, 'default_hooks.checkpoint.interval': 2}
    return options


def trained(
    config_path: str | Path, work_dir: Path, options: Mapping[str, Any], *, fresh: bool, amp: bool = False
) -> tuple[Path, float]:
    """The checkpoint of a finished training of exactly this config, and its minutes; trains when there is none."""
    config = prepare_training(config_path, work_dir=str(work_dir), options=options, amp=amp)
    fingerprint = hashlib.sha256(config.pretty_text.encode()).hexdigest()
    record = work_dir / 'trained.json'
    if record.is_file() and not fresh:
        found = json.loads(record.read_text())
        checkpoint = work_dir / found['checkpoint']
        if found['fingerprint'] == fingerprint and checkpoint.is_file():
            return checkpoint, found['minutes']
    record.unlink(missing_ok=True)
    start = time.perf_counter()
    run_training(config)
    minutes = (time.perf_counter() - start) / 60
    # mmengine writes the newest checkpoint's path here
    checkpoint = work_dir / Path((work_dir / 'last_checkpoint').read_text().strip()).name
    record.write_text(json.dumps({'fingerprint': fingerprint, 'checkpoint': checkpoint.name, 'minutes': minutes}))
    return checkpoint, minutes


def _compare_backbones(
    config: Config, checkpoint: Path, *, rounds: int
) -> tuple[torch.nn.Module, tuple[int, ...], dict[str, tuple[float, float]]]:
    """The model with its backbone fused, the shape timed, and the backbone's size and speed in both forms."""
    model: Any = build_model(config, checkpoint)
    model.to(get_device())
    fused: Any
    fused, report = fuse_checked(model)
    size = _LATENCY_SIZE[config.default_scope]
    shape = (1, 3, size, size)
    image = torch.randn(shape, device=get_device())
    latency = measure_latency(
        {'train form': partial(model.backbone, image), 'fused': partial(fused.backbone, image)},
        rounds=rounds,
        device=get_device(),
    )
    rows: dict[str, tuple[float, float]] = {
        'backbone parameters': (report.parameters_before, report.parameters_after),
        'backbone norms': (report.norms_before, report.norms_after),
        'backbone latency, ms': (latency['train form'].median_ms, latency['fused'].median_ms),
    }
    return fused, shape, rows


def _text(value: float) -> str:
    if isinstance(value, int):
        return f'{value:,}'
    return format_score(value) if value < 1 else f'{value:.1f}'
