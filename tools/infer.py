"""Draw what a detector, a segmentor or a classifier sees in images; print a classifier's surest classes."""

from __future__ import annotations

import argparse
import sys

from mmengine.config import DictAction

from repnext_mm.apis import annotate_images


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image', nargs='+', help="image files, folders of images, or quoted patterns: 'in/*.jpg'")
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out-dir', default='work_dirs/infer', help='images go to OUT_DIR/vis/')
    parser.add_argument('--device', help="such as 'cpu' or 'cuda:0' (default: the best there is)")
    parser.add_argument('--score-threshold', type=float, default=0.3, help='hide weaker detections')
    parser.add_argument('--no-fuse', action='store_true', help='run the trained form of the backbone')
    parser.add_argument('--ema', action='store_true', help='take the averaged weights of the file')
    parser.add_argument(
        '--trust-pickle', action='store_true', help='let checkpoints build any object, which can run any code in them'
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides of the config')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        done = annotate_images(
            args.image,
            args.config,
            args.checkpoint,
            out_dir=args.out_dir,
            device=args.device,
            score_threshold=args.score_threshold,
            fuse=not args.no_fuse,
            ema=args.ema,
            trust_pickle=args.trust_pickle,
            options=args.cfg_options,
            report=print,
        )
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    for path in done.written:
        print(f'{"replaced" if path in done.replaced else "wrote"} {path}')
    for reason in done.failed.values():
        print(f'error: {reason}', file=sys.stderr)
    total = len(done.written) + len(done.failed)
    if total > 1:
        print(f'{len(done.written)} of {total} images annotated, {len(done.replaced)} in the place of earlier ones')
    if done.failed:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
