"""Draw the figures of docs/reparameterization.md from real kernels."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

import torch
from torch import nn

from repnext_mm.apis import load_config
from repnext_mm.apis.build import build_model
from repnext_mm.errors import UserError
from repnext_mm.lab.draw.laws import draw_chain, draw_shortcut, draw_sum
from repnext_mm.models import ChunkConv, RepDWConvS, RepNeXt


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--config', help='trained model whose kernels are drawn (default: M0 with random weights)')
    parser.add_argument('--checkpoint', help='its weights, in train form')
    parser.add_argument('--block', default='stages.2.blocks.4', help="which of the backbone's blocks")
    parser.add_argument('--channel', type=int, default=0, help='channel within each scale, a quarter of the channels')
    parser.add_argument('--out', type=Path, default=Path('docs/pictures'), help='folder')


def run(args: argparse.Namespace) -> None:
    mixer = mixer_of(args)
    draw_sum(mixer, args.out / 'reparam_sum.png', channel=args.channel)
    draw_chain(mixer, args.out / 'reparam_chain.png', channel=args.channel)
    draw_shortcut(args.out / 'reparam_shortcut.png')
    print(f'drew reparam_sum.png, reparam_chain.png and reparam_shortcut.png in {args.out}')


def mixer_of(args: argparse.Namespace) -> ChunkConv:
    if (args.config is None) != (args.checkpoint is None):
        raise UserError('give --config and --checkpoint together, or neither')
    torch.manual_seed(0)
    backbone: nn.Module = RepNeXt('m0')
    if args.config is not None:
        model = build_model(load_config(args.config), args.checkpoint)
        backbone = cast(nn.Module, getattr(model, 'backbone', model))
    mixer = dict(backbone.named_modules()).get(f'{args.block}.token_mixer')
    if not isinstance(mixer, ChunkConv) or not isinstance(mixer.conv_s, RepDWConvS):
        raise UserError(f"--block {args.block} is not a block of RepNeXt in train form: try 'stages.0.blocks.0'")
    channels = mixer.conv_s.conv_3_3.in_channels
    if not 0 <= args.channel < channels:
        raise UserError(f'--channel {args.channel}: the scales have channels 0 to {channels - 1}')
    return mixer
