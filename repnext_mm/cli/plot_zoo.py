"""Draw accuracy against latency (as reported, and as benchmark records measured it) or against epochs (as reported)."""

from __future__ import annotations

import argparse
from pathlib import Path

from repnext_mm.errors import UserError
from repnext_mm.lab.bench.chart import plot_lengths, plot_zoo
from repnext_mm.lab.bench.record import read_record

METRICS = {
    'top1': 'ImageNet top-1, %',
    'box_ap': 'COCO box AP, Mask R-CNN 1x',
    'miou': 'ADE20K mIoU, Semantic FPN, %',
}
RECORD = Path(__file__).resolve().parents[2] / 'docs/benchmarks/pareto-cpu-epyc.json'  # in a clone


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('records', nargs='*', type=Path, help='JSON files of repnext benchmark (default: ours)')
    parser.add_argument('--metrics', nargs='+', default=['top1'], choices=METRICS, help='a row for each')
    parser.add_argument(
        '--against',
        choices=('latency', 'epochs'),
        default='latency',
        help='epochs: the best top-1 of the compact models, by the length of their training; takes no records',
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/visualize/zoo.png'), help='PNG file')


def run(args: argparse.Namespace) -> None:
    if args.against == 'epochs':
        path = plot_lengths(args.out)
    else:
        if not args.records and not RECORD.is_file():
            raise UserError('an installed package holds no record: name one that repnext benchmark wrote')
        records = [read_record(path) for path in args.records or [RECORD]]
        path = plot_zoo(records, args.out, metrics=[METRICS[name] for name in args.metrics])
    print(f'wrote {path}')
