"""Draw the figures of docs/reparameterization.md from real kernels."""

from __future__ import annotations

import argparse
from pathlib import Path

from repnext_mm.lab.draw.laws import draw_chain, draw_shortcut, draw_sum, mixer_of
from repnext_mm.lab.draw.subject import load_subject


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--config', help='trained model whose kernels are drawn (default: M0 with random weights)')
    parser.add_argument('--checkpoint', help='its weights, in train form')
    parser.add_argument('--block', default='stages.2.blocks.4', help="which of the backbone's blocks")
    parser.add_argument('--channel', type=int, default=0, help='channel within each scale, a quarter of the channels')
    parser.add_argument('--out', type=Path, default=Path('docs/images'), help='folder')


def run(args: argparse.Namespace) -> None:
    backbone = load_subject(args.config, args.checkpoint).backbone
    mixer = mixer_of(backbone, args.block, channel=args.channel)
    draw_sum(mixer, args.out / 'reparam_sum.png', channel=args.channel)
    draw_chain(mixer, args.out / 'reparam_chain.png', channel=args.channel)
    draw_shortcut(args.out / 'reparam_shortcut.png')
    print(f'drew reparam_sum.png, reparam_chain.png and reparam_shortcut.png in {args.out}')
