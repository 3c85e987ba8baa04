"""Draw accuracy against latency (as reported, and as benchmark records measured it) or against epochs (as reported)."""

from __future__ import annotations

import argparse
from pathlib import Path

from repnext_mm.lab.bench.chart import plot_lengths, plot_zoo
from repnext_mm.lab.bench.record import read_record

METRICS = {
    'top1': 'ImageNet top-1, %',
    'box_ap': 'COCO box AP, Mask R-CNN 1x',
    'miou': 'ADE20K mIoU, Semantic FPN, %',
}
RECORD = Path(__file__).resolve().parents[1] / 'docs/benchmarks/pareto-cpu-epyc.json'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('records', nargs='*', type=Path, default=[RECORD], help='JSON files of tools/benchmark.py')
    parser.add_argument('--metrics', nargs='+', default=['top1'], choices=METRICS, help='a row for each')
    parser.add_argument(
        '--against',
        choices=('latency', 'epochs'),
        default='latency',
        help='epochs: the best top-1 of the compact models, by the length of their training; takes no records',
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/visualize/zoo.png'), help='PNG file')
    args = parser.parse_args()
    try:
        if args.against == 'epochs':
            path = plot_lengths(args.out)
        else:
            records = [read_record(path) for path in args.records]
            path = plot_zoo(records, args.out, metrics=[METRICS[name] for name in args.metrics])
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    print(f'wrote {path}')


if __name__ == '__main__':
    main()
