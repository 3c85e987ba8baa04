"""Draw losses and metrics of one or several trainings from mmengine's logs, mmcv 1.x's, timm's and the authors'."""

from __future__ import annotations

import argparse
from pathlib import Path

from repnext_mm.lab.draw.logs import plot_runs, read_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'runs', nargs='+', help='working directories, or logs: scalars.json, *.log.json, log.txt, summary.csv'
    )
    parser.add_argument('--names', nargs='+', help='of the runs, in the same order (default: folders or files)')
    parser.add_argument('--keys', nargs='+', default=(), help="curves, such as 'loss' 'coco/*' (default: all but lr)")
    parser.add_argument('--title', help='of the image')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/visualize/logs.png'), help='PNG file')
    args = parser.parse_args()
    names = args.names or [None] * len(args.runs)
    if len(names) != len(args.runs):
        raise SystemExit(f'error: {len(names)} names for {len(args.runs)} runs: give one for each')
    try:
        runs = [read_run(path, name=name) for path, name in zip(args.runs, names, strict=True)]
        path = plot_runs(runs, args.out, keys=args.keys, title=args.title)
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    print(f'wrote {path}')


if __name__ == '__main__':
    main()
