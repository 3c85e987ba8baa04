"""Draw losses and metrics of one or several trainings from mmengine's logs, mmcv 1.x's, timm's and the authors'."""

from __future__ import annotations

import argparse
from pathlib import Path

from repnext_mm.errors import UserError
from repnext_mm.lab.draw.logs import plot_runs, read_run


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'runs', nargs='+', help='working directories, or logs: scalars.json, *.log.json, log.txt, summary.csv'
    )
    parser.add_argument('--names', nargs='+', help='names of the runs, in the same order (default: folders or files)')
    parser.add_argument('--keys', nargs='+', default=(), help="curves, such as 'loss' 'coco/*' (default: all but lr)")
    parser.add_argument('--title', help='figure title')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/visualize/logs.png'), help='PNG file')


def run(args: argparse.Namespace) -> None:
    names = args.names or [None] * len(args.runs)
    if len(names) != len(args.runs):
        raise UserError(f'{len(names)} names for {len(args.runs)} runs: give one for each')
    runs = [read_run(path, name=name) for path, name in zip(args.runs, names, strict=True)]
    print(f'wrote {plot_runs(runs, args.out, keys=args.keys, title=args.title)}')
