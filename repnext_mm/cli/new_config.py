"""Check your own data and write a config that trains on them."""

from __future__ import annotations

import argparse

from repnext_mm.cli.check_data import add_data_options, names_of
from repnext_mm.data.own.config_text import RECIPES
from repnext_mm.data.own.new_config import new_config
from repnext_mm.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    add_data_options(parser)
    parser.add_argument(
        '--model', choices=RECIPES, help='default: mask-rcnn (faster-rcnn without masks), semantic-fpn, classifier'
    )
    parser.add_argument('--arch', default='m1', help='m0 to m5, m0e to m2e (default: m1)')
    parser.add_argument('--out', metavar='FILE', help='the config (default: here, named after task, arch and data)')
    parser.add_argument('--batch', type=int, help='images on one GPU (default: 2 det, 8 RTMDet, 4 seg, 64 cls)')
    parser.add_argument('--gpus', type=int, default=1, help='how many; the learning rate is scaled to batch x gpus')
    parser.add_argument('--checkpoint', metavar='FILE', help='weights that the backbone starts from')
    parser.add_argument(
        '--size', type=int, help='pixels of shorter side or crop (default: 800 det, 640 RTMDet, 512 seg, 224 cls)'
    )
    parser.add_argument(
        '--epochs', type=int, help='times through the data (default: 12 det, 300 RTMDet, 64 seg, 300 cls)'
    )


def run(args: argparse.Namespace) -> None:
    done = new_config(
        task=args.task,
        data=args.data,
        model=args.model,
        classes=names_of(args.classes),
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
    print(done.findings.report())
    if done.path is None:
        raise UserError('nothing was written: fix the errors above and run this again')
    if done.annotations:
        print(f'wrote the annotations, converted, to {", ".join(map(str, done.annotations))}')
    trainer = 'repnext train' if args.called[0] == 'repnext' else 'python tools/train.py'
    print(f'wrote {done.path}\ntrain with: {trainer} {done.path}')
