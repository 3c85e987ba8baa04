"""Train two over-parameterized classifiers, fold them, and compare accuracy and inference time before and after."""

from __future__ import annotations

import argparse
from pathlib import Path

from repnext_mm.lab.demo.folding import format_forms, run_reparam_demo

CONFIGS = {'RepVGG': 'repvgg_digits_cls.py', 'RepNeXt-M0': 'repnext_m0_digits_cls.py'}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', choices=('digits', 'cifar10', 'cifar100'), default='digits')
    parser.add_argument('--data-root', help='folder of the data (default: data/digits, data/cifar10, data/cifar100)')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo_reparam, and that of demo-cls')
    parser.add_argument('--fresh', action='store_true', help='train again although a finished training is there')
    parser.add_argument('--quick', action='store_true', help='one epoch on a few pictures: does it run at all?')
    args = parser.parse_args()
    suffix = ('' if args.data == 'digits' else f'_{args.data}') + ('_quick' if args.quick else '')
    out_dir = args.work_dir or Path('work_dirs') / f'demo_reparam{suffix}'
    work_dirs = {name: out_dir / Path(config).stem for name, config in CONFIGS.items()}
    if args.work_dir is None and args.data == 'digits' and args.data_root is None:
        work_dirs['RepNeXt-M0'] = Path('work_dirs') / f'demo_classification{suffix}'  # the same training: share it
    configs = Path(__file__).resolve().parents[1] / 'configs'
    try:
        report = run_reparam_demo(
            {name: configs / config for name, config in CONFIGS.items()},
            work_dirs=work_dirs,
            out_dir=out_dir,
            data=args.data,
            data_root=args.data_root,
            quick=args.quick,
            fresh=args.fresh,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise SystemExit(f'demo_reparam: {error}') from error
    print(f'\n{format_forms(report)}\n')
    errors = ', '.join(f'{name} {error:.1e}' for name, error in report.score_errors.items())
    print(f'Largest difference of the scores, fused against train form, relative: {errors}.')
    print(f'Times: the whole classifier, {report.device}, {report.threads} threads, forms in turn.')
    minutes = ', '.join(f'{name} {value:.1f}' for name, value in report.train_minutes.items())
    print(f'Training took, in minutes: {minutes}.\nTable: {report.table}\nPlot: {report.plot}')


if __name__ == '__main__':
    main()
