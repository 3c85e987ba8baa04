"""Train two over-parameterized classifiers, fold them, and compare accuracy and inference time before and after."""

from __future__ import annotations

import argparse
from pathlib import Path

from repnext_mm.cli.demo import add_training_options
from repnext_mm.data.own.new_config import configs_folder
from repnext_mm.lab.demo.folding import format_forms, run_reparam_demo

CONFIGS = {'RepVGG': 'repvgg_digits_cls.py', 'RepNeXt-M0': 'repnext_m0_digits_cls.py'}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--data', choices=('digits', 'cifar10', 'cifar100'), default='digits')
    parser.add_argument('--data-root', help='folder of the data (default: data/digits, data/cifar10, data/cifar100)')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo_reparam, and that of demo-cls')
    add_training_options(parser, shortest='one epoch')


def run(args: argparse.Namespace) -> None:
    suffix = ('' if args.data == 'digits' else f'_{args.data}') + ('_quick' if args.quick else '')
    out_dir = args.work_dir or Path('work_dirs') / f'demo_reparam{suffix}'
    work_dirs = {name: out_dir / Path(config).stem for name, config in CONFIGS.items()}
    if args.work_dir is None and args.data == 'digits' and args.data_root is None:
        work_dirs['RepNeXt-M0'] = Path('work_dirs') / f'demo_classification{suffix}'  # the same training: share it
    configs = configs_folder()
    report = run_reparam_demo(
        {name: configs / config for name, config in CONFIGS.items()},
        work_dirs=work_dirs,
        out_dir=out_dir,
        data=args.data,
        data_root=args.data_root,
        quick=args.quick,
        fresh=args.fresh,
    )
    print(f'\n{format_forms(report)}\n')
    errors = ', '.join(f'{name} {error:.1e}' for name, error in report.score_errors.items())
    print(f'Largest difference of the scores, fused against train form, relative: {errors}.')
    print(f'Times: the whole classifier, {report.device}, {report.threads} threads, forms in turn.')
    minutes = ', '.join(f'{name} {value:.1f}' for name, value in report.train_minutes.items())
    print(f'Training took, in minutes: {minutes}.\nTable: {report.table}\nPlot: {report.plot}')
