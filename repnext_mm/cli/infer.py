"""Draw what a detector, segmentor or classifier finds in images; print a classifier's most likely classes."""

from __future__ import annotations

import argparse
import sys

from repnext_mm.apis import annotate_images
from repnext_mm.cli import options


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('image', nargs='+', help="image files, folders of images, or quoted patterns: 'in/*.jpg'")
    options.add_config(parser)
    options.add_checkpoint(parser)
    parser.add_argument('--out-dir', default='work_dirs/infer', help='images go to OUT_DIR/vis/')
    options.add_device(parser, default=None)
    parser.add_argument('--score-threshold', type=float, default=0.3, help='hide weaker detections')
    options.add_no_fuse(parser)
    options.add_ema(parser)
    options.add_trust_pickle(parser)
    options.add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Annotate the images; 1 if any of them failed."""
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
    for path in done.written:
        print(f'{"replaced" if path in done.replaced else "wrote"} {path}')
    for reason in done.failed.values():
        print(f'error: {reason}', file=sys.stderr)
    total = len(done.written) + len(done.failed)
    if total > 1:
        print(f'{len(done.written)} of {total} images annotated, {len(done.replaced)} in the place of earlier ones')
    return 1 if done.failed else 0
