"""See it work: make digits or scenes of them, train a small model on them, fuse it, compare, and draw."""

from __future__ import annotations

import argparse
from pathlib import Path

from repnext_mm.lab.demo.run import format_table, run_demo

CONFIGS = {
    'detection': 'mask_rcnn_repnext_m0_digits.py',
    'segmentation': 'semantic_fpn_repnext_m0_digits.py',
    'classification': 'repnext_m0_digits_cls.py',
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('task', choices=CONFIGS)
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo_TASK')
    parser.add_argument('--fresh', action='store_true', help='train again although a finished training is there')
    parser.add_argument('--quick', action='store_true', help='two iterations on a few pictures: does it run at all?')
    arguments = parser.parse_args()
    name = f'demo_{arguments.task}' + ('_quick' if arguments.quick else '')
    try:
        report = run_demo(
            Path(__file__).resolve().parents[1] / 'configs' / CONFIGS[arguments.task],
            work_dir=arguments.work_dir or Path('work_dirs') / name,
            quick=arguments.quick,
            fresh=arguments.fresh,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise SystemExit(f'demo: {error}') from error
    print(f'\n{format_table(report.rows)}\n')
    print(f'Latency: median over one {"x".join(map(str, report.input_shape))} input, {report.device}, ', end='')
    print(f'{report.threads} threads. Training took {report.train_minutes:.1f} minutes.')
    print(f'Checkpoint: {report.checkpoint}\nTable: {report.table}\nPictures: {report.sheet}')


if __name__ == '__main__':
    main()
