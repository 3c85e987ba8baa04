"""Check your own data and write a config that trains on them."""

from __future__ import annotations

import argparse

from repnext_mm.data.own.new_config import new_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--task', required=True, choices=('det', 'seg', 'cls'))
    parser.add_argument('--data', required=True, metavar='ROOT', help='the folder that holds all of the data')
    parser.add_argument('--classes', help='names, separated by commas (needed for seg; the others name them)')
    parser.add_argument('--arch', default='m1', help='m0 to m5, m0e to m2e (default: m1)')
    parser.add_argument('--out', metavar='FILE', help='the config (default: here, named after task, arch and data)')
    parser.add_argument('--batch', type=int, help='images on one GPU (default: 2 det, 4 seg, 64 cls)')
    parser.add_argument('--gpus', type=int, default=1, help='how many; the learning rate is scaled to batch x gpus')
    parser.add_argument('--checkpoint', metavar='FILE', help='weights that the backbone starts from')
    parser.add_argument('--size', type=int, help='pixels of shorter side or crop (default: 800 det, 512 seg, 224 cls)')
    parser.add_argument('--epochs', type=int, help='times through the data (default: 12 det, 64 seg, 300 cls)')
    parser.add_argument(
        '--reduce-zero-label', action='store_true', help='seg: the value 0 is ignored, 1 is the first class'
    )
    parser.add_argument(
        '--map-suffix', metavar='END', help="seg: what names of maps end in, where several fit, such as '_labelIds.png'"
    )
    parser.add_argument('--boxes-only', action='store_true', help='det: do not look at masks; train on boxes alone')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        done = new_config(
            task=args.task,
            data=args.data,
            classes=None if args.classes is None else [name.strip() for name in args.classes.split(',')],
            arch=args.arch,
            out=args.out,
            batch=args.batch,
            gpus=args.gpus,
            checkpoint=args.checkpoint,
            size=args.size,
            epochs=args.epochs,
            reduce_zero_label=args.reduce_zero_label,
            map_suffix=args.map_suffix,
            boxes_only=args.boxes_only,
        )
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    print(done.findings.report())
    if done.path is None:
        raise SystemExit('error: nothing was written: fix the errors above and run this again')
    print(f'wrote {done.path}\ntrain with: python tools/train.py {done.path}')


if __name__ == '__main__':
    main()
