"""See it work: make digits or scenes of them, train a small model on them, fuse it, compare, and draw."""

from __future__ import annotations

import argparse
from pathlib import Path

from repnext_mm.data.own.new_config import configs_folder
from repnext_mm.lab.demo.run import format_table, run_demo
from repnext_mm.training.bfloat16 import trains_faster

CONFIGS = {
    'detection': 'mask_rcnn_repnext_m0_digits.py',
    'segmentation': 'semantic_fpn_repnext_m0_digits.py',
    'classification': 'repnext_m0_digits_cls.py',
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('task', choices=CONFIGS)
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo_TASK')
    add_training_options(parser, shortest='two iterations')
    parser.add_argument(
        '--amp',
        action=argparse.BooleanOptionalAction,
        help='train in mixed precision (default: the detector where the processor has AMX)',
    )


def add_training_options(parser: argparse.ArgumentParser, *, shortest: str) -> None:
    parser.add_argument('--fresh', action='store_true', help='train again although a finished training is there')
    parser.add_argument('--quick', action='store_true', help=f'{shortest} on a few images: does it run at all?')


def run(args: argparse.Namespace) -> None:
    amp = args.amp
    if amp is None and (amp := args.task == 'detection' and trains_faster()):  # the others gain nothing
        print('training in bfloat16, which is faster on a processor with AMX: --no-amp trains in float32')
    name = f'demo_{args.task}' + ('_quick' if args.quick else '')
    report = run_demo(
        configs_folder() / CONFIGS[args.task],
        work_dir=args.work_dir or Path('work_dirs') / name,
        quick=args.quick,
        fresh=args.fresh,
        amp=amp,
    )
    print(f'\n{format_table(report.rows)}\n')
    print(f'Latency: median over one {"x".join(map(str, report.input_shape))} input, {report.device}, ', end='')
    print(f'{report.threads} threads. Training took {report.train_minutes:.1f} minutes.')
    print(f'Checkpoint: {report.checkpoint}\nTable: {report.table}\nImages: {report.sheet}')
