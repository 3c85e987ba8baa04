"""Make the digit scenes that the digits configs use: COCO-style instances and ADE-style semantic masks."""

from __future__ import annotations

import argparse

from repnext_mm.data import SceneSet, ensure_scenes


def add_options(parser: argparse.ArgumentParser) -> None:
    default = SceneSet()
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument('root', nargs='?', default='data/digit_scenes', help='folder to make')
    parser.add_argument('--train', type=int, default=default.train, help='training scenes')
    parser.add_argument('--val', type=int, default=default.val, help='validation scenes')
    parser.add_argument('--seed', type=int, default=default.seed, help='other seeds give other scenes')
    parser.add_argument('--size', type=int, default=default.size, help='side of a scene in pixels')


def run(args: argparse.Namespace) -> None:
    made = ensure_scenes(args.root, SceneSet(train=args.train, val=args.val, seed=args.seed, size=args.size))
    print(f'{args.root}: {"made" if made else "was there already"}')
