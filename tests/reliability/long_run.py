"""Train, validate, test the fused model, over and over in one process: what is left behind?

The hour of docs/reliability.md: python tests/reliability/long_run.py --minutes 60 --out work_dirs/long_run
Writes OUT/long_run.json and OUT/long_run.png; fails if memory grows or a process, thread or handle is left.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from repnext_mm.apis import prepare_training, run_training
from repnext_mm.lab.bench.record import environment
from repnext_mm.lab.draw.canvas import new_figure, save_png

CONFIG = Path(__file__).resolve().parents[2] / 'configs' / 'mask_rcnn_repnext_m0_digits.py'
WARM_UP = 0.2  # of the cycles: caches, memory pools and log histories fill
LEAST_WARM_UP, LEAST_JUDGED = 3, 4  # cycles
MOST_GROWTH = 0.03  # of the memory, fitted over the rest of the run
COUNTED = ('handles', 'threads', 'processes')
METRIC, METRIC_TOLERANCE = 'coco/bbox_mAP', 0.02  # a box at the score threshold may fall on either side


@HOOKS.register_module(force=True)
class CycleHook(Hook):
    """After each training epoch and its validation, test the fused model, and note what the process holds."""

    priority = 'LOWEST'

    def __init__(self, minutes: float, file: str) -> None:
        self.seconds, self.file = 60 * minutes, Path(file)
        self.start, self.samples = time.monotonic(), list[dict[str, Any]]()
        self.trained: float | None = None

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.trained = (metrics or {}).get(METRIC)

    def before_train_epoch(self, runner: Runner) -> None:
        if runner.epoch == 0:  # nothing is trained yet
            return
        metrics = runner.test_loop.run()
        self.samples.append(
            {
                'minute': (time.monotonic() - self.start) / 60,
                'cycle': runner.epoch,
                'iteration': runner.iter,
                'box_ap_trained': self.trained,  # none of either where nothing was found
                'box_ap_fused': metrics.get(METRIC),
                **held(),
            }
        )
        self.file.write_text(json.dumps(self.samples))
        if time.monotonic() - self.start > self.seconds:
            runner.train_loop.stop_training = True  # after one more epoch


def held() -> dict[str, Any]:
    """Memory that is in use, open files, threads, and processes below this one."""
    gc.collect()  # garbage is no leak
    process = psutil.Process()
    return {
        'memory_mb': process.memory_info().rss / 2**20,
        'handles': process.num_fds(),
        'threads': process.num_threads(),
        'processes': len(process.children(recursive=True)),
    }


def options(out: Path, *, minutes: float, scenes: tuple[int, int]) -> dict[str, Any]:
    """Few scenes, so that cycles are short; workers that start and end in each of them."""
    chosen: dict[str, Any] = {
        'data_root': str(out / 'digit_scenes'),
        'train_cfg.max_epochs': 10**6,
        'train_cfg.val_interval': 1,
        'param_scheduler': [{'type': 'ConstantLR', 'factor': 0.3, 'end': 10**9}],
        'default_hooks.checkpoint.interval': 1,
        'default_hooks.checkpoint.max_keep_ckpts': 2,
        'default_hooks.checkpoint.save_best': METRIC,
        'custom_hooks': [
            {'type': 'FuseBackboneHook'},
            {'type': 'ReturnMemoryHook'},
            {'type': 'CycleHook', 'minutes': minutes, 'file': str(out / 'samples.json')},
        ],
    }
    for loader in ('train', 'val', 'test'):
        chosen[f'{loader}_dataloader.persistent_workers'] = False
        chosen[f'{loader}_dataloader.dataset.scenes'] = {'train': scenes[0], 'val': scenes[1]}
    return chosen


def judge(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """What grew after the warm-up; ``failures`` is empty when nothing did.

    Memory: the Theil-Sen line through the samples, which single jumps do not bend, must rise by less than
    ``MOST_GROWTH`` from its first point to its last. Counts: never more than during the warm-up.
    """
    from scipy.stats import theilslopes

    warm_up = max(LEAST_WARM_UP, round(WARM_UP * len(samples)))
    rest = samples[warm_up:]
    if len(rest) < LEAST_JUDGED:
        raise ValueError(f'{len(samples)} cycles are too few to judge: {warm_up + LEAST_JUDGED} are needed, run longer')
    hours = np.array([sample['minute'] for sample in rest]) / 60
    memory = np.array([sample['memory_mb'] for sample in rest])
    slope = float(theilslopes(memory, hours).slope)
    growth = slope * (hours[-1] - hours[0]) / float(np.median(memory))
    failures = []
    if not growth < MOST_GROWTH:
        failures.append(f'memory grew by {growth:.1%}, {MOST_GROWTH:.0%} is the limit')
    pairs = [(sample['box_ap_trained'], sample['box_ap_fused']) for sample in samples]
    apart = max((abs(a - b) for a, b in pairs if a is not None and b is not None), default=0.0)
    if not apart <= METRIC_TOLERANCE or any((a is None) != (b is None) for a, b in pairs):
        failures.append(f'box AP of the fused model is {apart:.3f} from that of the trained one, or only one has any')
    for key in COUNTED:
        before, after = (max(sample[key] for sample in part) for part in (samples[:warm_up], rest))
        if after > before:
            failures.append(f'{after} {key} after the warm-up, {before} during it')
    return {
        'cycles': len(samples),
        'warm_up': warm_up,
        'minutes': samples[-1]['minute'],
        'iterations': samples[-1]['iteration'],
        'slope_mb_per_hour': slope,
        'growth': growth,
        'memory_mb': {
            'first': samples[0]['memory_mb'],
            'median': float(np.median(memory)),
            'least': float(memory.min()),
            'most': float(memory.max()),
        },
        'box_ap': {'apart': apart, 'last': pairs[-1][1]},
        **{key: [min(sample[key] for sample in rest), max(sample[key] for sample in rest)] for key in COUNTED},
        'failures': failures,
    }


def draw(samples: list[dict[str, Any]], verdict: dict[str, Any], path: Path, *, machine: str) -> None:
    minutes = [sample['minute'] for sample in samples]
    figure = new_figure(
        (9, 6),
        (
            f'{verdict["minutes"]:.0f} minutes, {verdict["cycles"]} cycles of train, validate, test fused, '
            f'in one process\n{machine}'
        ),
    )
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    upper.plot(minutes, [sample['memory_mb'] for sample in samples], label='resident memory after each cycle')
    begin, end = minutes[verdict['warm_up']], minutes[-1]
    middle, slope = verdict['memory_mb']['median'], verdict['slope_mb_per_hour']
    line = [middle + slope * (minute - (begin + end) / 2) / 60 for minute in (begin, end)]
    upper.plot((begin, end), line, '--', label=f'fitted after the warm-up: {slope:+.1f} MB an hour')
    upper.set_ylim(0, 1.15 * max(sample['memory_mb'] for sample in samples))
    upper.set_ylabel('MB')
    for key in COUNTED:
        lower.plot(minutes, [sample[key] for sample in samples], drawstyle='steps-post', label=f'{key}')
    lower.set_ylim(-1, 1.3 * max(sample[key] for sample in samples for key in COUNTED))
    lower.set_ylabel('open between cycles')
    lower.set_xlabel('minutes')
    for axes in (upper, lower):
        axes.axvspan(0, begin, color='0.9', label='warm-up')
        axes.grid(alpha=0.3)
    upper.legend(loc='lower right')
    lower.legend(loc='center right')
    save_png(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=60)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/long_run'), help='folder for data, run and results')
    parser.add_argument('--scenes', type=int, nargs=2, default=(16, 4), metavar=('TRAIN', 'VAL'))
    args = parser.parse_args()
    out = args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    config = prepare_training(
        CONFIG, work_dir=str(out / 'run'), options=options(out, minutes=args.minutes, scenes=tuple(args.scenes))
    )
    run_training(config)
    samples = json.loads((out / 'samples.json').read_text())
    verdict, machine = judge(samples), environment()
    record = {'environment': machine, 'scenes': args.scenes, 'verdict': verdict, 'samples': samples}
    (out / 'long_run.json').write_text(json.dumps(record, indent=1) + '\n')
    draw(
        samples,
        verdict,
        out / 'long_run.png',
        machine=(f'{machine["cpu"]}, {machine["threads"]} of {os.cpu_count()} threads, PyTorch {machine["torch"]}'),
    )
    sys.stdout.write(json.dumps(verdict, indent=1) + '\n')
    if verdict['failures']:
        raise SystemExit('; '.join(verdict['failures']))


if __name__ == '__main__':
    main()
